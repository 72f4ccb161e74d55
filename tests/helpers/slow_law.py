"""The law computed cell by cell, and cells simulated from it."""

import math

import numpy as np

from memlaw.core.points import LawPoint

RANKS = (1, 2, 4, 8, 16, 32)

LENGTHS = (500, 1000, 2000, 4000, 6000, 8000)

BOUNDED = {"C": 700.0, "alpha": 0.9, "beta": 0.76, "b": 0.6, "n": 4.0}
"""Close to the published cells: with RANKS, LENGTHS and L_init 12, cells range from hardly learned to saturated."""

PAPER = {"C": 240.0, "alpha": 0.66, "beta": 0.56, "b": -0.4}

POWER = {"C": 240.0, "alpha": 0.66, "beta": 0.56}

LOG = {"k": 2.0, "q": 0.8, "a": 14.0}

MEMORY = {"C": 750.0, "alpha": 0.9, "beta": 0.76, "n": 4.0}

GIVEN = 1.0
"""L - L': nats that need no memory, in cells simulated from the memory form."""

TRUTHS = {"paper": PAPER, "power": POWER, "log": LOG, "bounded": BOUNDED, "memory": MEMORY}


def growth(p: dict[str, float], rank: float, length: float) -> float:
    if "k" in p:
        return p["a"] + p["k"] * (math.log(rank) - p["q"] * math.log(length))
    return p["C"] * rank ** p["alpha"] * length ** -p["beta"] + p.get("b", 0.0)


def law(p: dict[str, float], rank: float, length: float, loss_init: float) -> float:
    """dL = u; with a parameter n, L (1 + (u/L)^-n)^(-1/n), or u if u <= 0; with n and no b, the memory form."""
    u = growth(p, rank, length)
    if has_memory_form(p):
        return GIVEN + law({**p, "b": 0.0}, rank, length, loss_init - GIVEN)
    if "n" not in p or u <= 0:
        return u
    return loss_init * (1 + (u / loss_init) ** -p["n"]) ** (-1 / p["n"])


def has_memory_form(p: dict[str, float]) -> bool:
    return "n" in p and "b" not in p


def smallest_rank(p: dict[str, float], length: float, loss_init: float, loss_final: float) -> int:
    """By trying every rank."""
    return next(r for r in range(1, 10**6) if loss_init - law(p, r, length, loss_init) <= loss_final)


def simulate(
    p: dict[str, float], *, loss_init=12.0, noise=0.0, seed=0, ranks=RANKS, lengths=LENGTHS, with_final=True,
    runs=1, relative=False,
) -> list[LawPoint]:  # fmt: skip
    """`runs` cells of each rank and length; dL scatters by `noise` around the law, in nats or as a share of dL."""
    random = np.random.default_rng(seed)
    cells = []
    for length in lengths:
        for rank in ranks:
            for run in range(runs):
                true, error = law(p, rank, length, loss_init), noise * random.standard_normal()
                delta = float(true * math.exp(error) if relative else true + error)
                final = loss_init - delta if with_final else None
                memoryless = loss_init - GIVEN if has_memory_form(p) else None
                seed = run if runs > 1 else None
                cells.append(LawPoint(rank, length, delta, final, seed=seed, loss_memoryless=memoryless))
    return cells


def simulate_for(form: str, **options) -> list[LawPoint]:
    """Cells of a form's own truth; unbounded forms get no final loss, so that no cell is saturated."""
    return simulate(TRUTHS[form], with_final=form in ("bounded", "memory"), **options)


def aicc(residuals: list[float], parameters: int) -> float:
    m, k = len(residuals), parameters + 1
    return m * math.log(sum(r * r for r in residuals) / m) + 2 * k + 2 * k * (k + 1) / (m - k - 1)


def weighted_line(x: list[float], y: list[float], weight: list[float]) -> tuple[float, float]:
    """Intercept and slope of a straight line by weighted least squares."""
    total = sum(weight)
    mean_x = sum(w * a for w, a in zip(weight, x, strict=True)) / total
    mean_y = sum(w * b for w, b in zip(weight, y, strict=True)) / total
    shared = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weight, x, y, strict=True))
    slope = shared / sum(w * (a - mean_x) ** 2 for w, a in zip(weight, x, strict=True))
    return mean_y - slope * mean_x, slope
