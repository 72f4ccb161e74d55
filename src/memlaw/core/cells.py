"""Cells: one point of a sweep, everything that determines its result, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from memlaw.core.canonical import digest, to_dict
from memlaw.core.config import Number, TrainConfig, Whole, identity
from memlaw.core.errors import ConfigError

_NO_OTHER_FIELDS = ConfigDict(extra="forbid")

ALGORITHM_VERSION = 2
"""Goes up when a change of the code changes the result of a cell; part of every cell's key."""


@dataclass(frozen=True)
class Cell:
    """One point of a sweep and everything that determines its result."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    model: str
    """Fingerprint of the base model's weights."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    data: str
    """Fingerprint of the memory set that `length` is a prefix of."""
    placement: str
    rank: Whole
    length: Whole
    """Target tokens: this many of one long target, or the longest prefix of whole records with at most that many."""
    train: TrainConfig
    dtype: str
    algorithm: Whole = ALGORITHM_VERSION
    libraries: str = ""
    """The libraries that compute, with their versions."""
    device: str = ""
    """The kind of device that computes: cpu, cuda."""

    @property
    def key(self) -> str:
        """SHA-256 of all fields. A cell whose key is finished is never trained again and never counted twice."""
        return digest(cell_to_dict(self))


CellStatus = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class CellResult:
    """What was measured on one cell. Losses are means over all target tokens; see RecallReport for the shares."""

    __pydantic_config__: ClassVar[ConfigDict] = _NO_OTHER_FIELDS

    cell: Cell
    status: CellStatus
    steps: Whole
    """Optimizer steps taken; for a diverged cell, those until it was given up."""
    parameters: Whole
    """Effective parameters: all adapter weights of this rank and placement."""
    loss_init: Number | None
    """Nats; this and the numbers below are None if the cell did not get that far."""
    loss_final: Number | None
    delta_loss: Number | None
    acc_token: Number | None
    acc_em: Number | None
    ordered: Whole | None
    certified: Whole | None
    records: Whole
    message: str = ""
    """Why the cell did not finish."""
    loss_memoryless: Number | None = None
    """L_init' (nats): mean loss of the best predictor that knows which tokens occur in the text, and nothing else."""
    certified_tokens: Whole | None = None
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


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """What is hashed for the key and recorded in the journal: without settings that the cell's version did not have."""
    return to_dict(cell) | {"train": identity(cell.train)}


def result_to_dict(result: CellResult) -> dict[str, Any]:
    """A result as plain JSON values, its cell as `cell_to_dict` gives it."""
    return to_dict(result) | {"cell": cell_to_dict(result.cell)}


def result_from_dict(values: dict[str, Any]) -> CellResult:
    """Inverse of `result_to_dict`. Raises ConfigError for anything else."""
    try:
        return _reader().validate_python(values)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'value'}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(
            f"These values are not a CellResult of this version of memlaw ({'; '.join(faults)}). Read them with the "
            "version that wrote them."
        ) from None


@cache  # building it takes milliseconds, and most imports of this module read no cell
def _reader() -> TypeAdapter[CellResult]:
    return TypeAdapter(CellResult)
