"""Cells: one point of a sweep, everything that determines its result, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from memlaw.core.canonical import digest, to_dict
from memlaw.core.config import TrainConfig

ALGORITHM_VERSION = 2
"""Raised when a change of the code changes the result of a cell; part of every cell's key."""


@dataclass(frozen=True)
class Cell:
    """One point of a sweep and everything that determines its result."""

    model: str
    """Fingerprint of the base model's weights."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    data: str
    """Fingerprint of the memory set that `length` is a prefix of."""
    placement: str
    rank: int
    length: int
    """Target tokens trained: this many of one long target, or the longest prefix of whole records that fits."""
    train: TrainConfig
    dtype: str
    algorithm: int = ALGORITHM_VERSION
    libraries: str = ""
    """Those that compute, with their versions."""
    device: str = ""
    """The kind of device that computes: cpu, cuda."""

    @property
    def key(self) -> str:
        """Identity: SHA-256 over every field. A finished key is never trained again and never counted twice."""
        return digest(to_dict(self))


CellStatus = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class CellResult:
    """What was measured on one cell. Losses are means over all target tokens; see RecallReport for the shares."""

    cell: Cell
    status: CellStatus
    steps: int
    """Optimizer steps taken (the step of divergence, for a diverged cell)."""
    parameters: int
    """Effective parameters: all adapter weights of this rank and placement."""
    loss_init: float | None
    """This and the numbers below are None where the cell did not get that far."""
    loss_final: float | None
    delta_loss: float | None
    acc_token: float | None
    acc_em: float | None
    ordered: int | None
    certified: int | None
    records: int
    message: str = ""
    """Why the cell did not finish."""
    loss_memoryless: float | None = None
    """L_init' (nats): mean loss of the best predictor that remembers nothing of the text but which tokens occur."""
    certified_tokens: int | None = None
    """Target tokens of the certified records."""


def families(results: Iterable[CellResult]) -> list[list[CellResult]]:
    """Cells that differ in rank, length and seed alone, together: only they belong to one law or one heatmap.

    Families come in the order of their first result, the results of a family by length, rank and seed.
    """
    grouped: dict[Cell, list[CellResult]] = {}
    for result in results:
        cell = result.cell
        shared = replace(cell, rank=0, length=0, train=replace(cell.train, seed=0))
        grouped.setdefault(shared, []).append(result)
    return [sorted(members, key=_length_rank_seed) for members in grouped.values()]


def _length_rank_seed(result: CellResult) -> tuple[int, int, int]:
    return result.cell.length, result.cell.rank, result.cell.train.seed


def cell_from_dict(values: dict[str, Any]) -> Cell:
    """Inverse of `to_dict` for a cell."""
    return Cell(**{**values, "train": TrainConfig(**values["train"])})


def result_from_dict(values: dict[str, Any]) -> CellResult:
    """Inverse of `to_dict` for a cell's result."""
    return CellResult(**{**values, "cell": cell_from_dict(values["cell"])})
