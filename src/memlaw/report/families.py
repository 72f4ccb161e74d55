"""Families of cells and what a page calls them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memlaw.core import cells
from memlaw.core.canonical import to_dict
from memlaw.core.cells import Cell, CellResult

_ALWAYS_NAMED = ("data", "method", "placement", "dtype")

_FINGERPRINTS = ("model", "tokenizer", "data")


@dataclass(frozen=True)
class Family:
    """Cells that differ in rank, length and seed alone."""

    results: Sequence[CellResult]
    """By length, rank and seed."""
    name: str
    """Data, method, placement and dtype, and every setting that another family of the page has otherwise."""
    label: str
    """The data and only what sets the family apart; empty where it is the only one."""

    @property
    def until_budget(self) -> bool:
        """Whether every cell took all of its steps, as the law wants it."""
        return self.results[0].cell.train.until == "budget"


def named_families(results: Iterable[CellResult], sources: Mapping[str, str]) -> list[Family]:
    """The families of `results`; `sources` are fingerprints of memory sets and what people call them."""
    grouped = cells.families(results)
    settings = [_settings(members[0].cell, sources) for members in grouped]
    differing = [name for name in settings[0] if len({str(each[name]) for each in settings}) > 1] if settings else []
    full = [*_ALWAYS_NAMED, *(name for name in differing if name not in _ALWAYS_NAMED)]
    apart = ["data", *(name for name in full if name in differing and name != "data")] if len(grouped) > 1 else []
    return [
        Family(members, ", ".join(each[name] for name in full), ", ".join(each[name] for name in apart))
        for members, each in zip(grouped, settings, strict=True)
    ]


def _settings(cell: Cell, sources: Mapping[str, str]) -> dict[str, str]:
    """Setting -> its value in words, for every setting that the cells of a family share."""
    values = to_dict(cell)
    values |= values.pop("train")
    shared = {name: value for name, value in values.items() if name not in ("rank", "length", "seed")}
    return {name: _in_words(name, value) for name, value in shared.items()} | {"data": _data(cell.data, sources)}


def _in_words(name: str, value: Any) -> str:
    if name in _ALWAYS_NAMED:
        return str(value)
    if name in _FINGERPRINTS:
        return f"{name} {value[:8]}"
    if name == "steps":
        return f"{value:,} steps"
    return f"{name.replace('_', ' ')} {value}"


def _data(fingerprint: str, sources: Mapping[str, str]) -> str:
    name = sources.get(fingerprint)
    if name is None:
        return f"data {fingerprint[:8]}"
    shared = [other for other, called in sources.items() if called == name]
    return f"{name} ({fingerprint[:8]})" if len(shared) > 1 else name
