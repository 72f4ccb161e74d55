"""The law written out cell by cell, and cells simulated from it."""

import math

import numpy as np

from memlaw.records import LawPoint

RANKS = (1, 2, 4, 8, 16, 32)
LENGTHS = (500, 1000, 2000, 4000, 6000, 8000)
BOUNDED = {"C": 700.0, "alpha": 0.9, "beta": 0.76, "b": 0.6, "n": 4.0}
"""Close to the published cells: with RANKS, LENGTHS and L_init 12, from hardly learned to saturated."""
PAPER = {"C": 240.0, "alpha": 0.66, "beta": 0.56, "b": -0.4}


def power_offset(p: dict[str, float], rank: float, length: float) -> float:
    return p["C"] * rank ** p["alpha"] * length ** -p["beta"] + p["b"]


def law(p: dict[str, float], rank: float, length: float, loss_init: float) -> float:
    """dL = u, or with an n: dL = L (1 + (u/L)^-n)^(-1/n), and u where u <= 0."""
    u = power_offset(p, rank, length)
    if "n" not in p or u <= 0:
        return u
    return loss_init * (1 + (u / loss_init) ** -p["n"]) ** (-1 / p["n"])


def smallest_rank(p: dict[str, float], length: float, loss_init: float, loss_final: float) -> int:
    """By trying every rank."""
    return next(r for r in range(1, 10**6) if loss_init - law(p, r, length, loss_init) <= loss_final)


def simulate(
    p: dict[str, float], *, loss_init=12.0, noise=0.0, seed=0, ranks=RANKS, lengths=LENGTHS, with_final=True
) -> list[LawPoint]:
    """One cell for each rank and length; its dL scatters by `noise` nats around the law."""
    random = np.random.default_rng(seed)
    cells = []
    for length in lengths:
        for rank in ranks:
            delta = law(p, rank, length, loss_init) + noise * random.standard_normal()
            cells.append(LawPoint(rank, length, float(delta), float(loss_init - delta) if with_final else None))
    return cells


def aicc(residuals: list[float], parameters: int) -> float:
    m, k = len(residuals), parameters + 1
    return m * math.log(sum(r * r for r in residuals) / m) + 2 * k + 2 * k * (k + 1) / (m - k - 1)
