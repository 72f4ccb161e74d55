"""Memory in bits, as the template needs it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from memlaw.core.cells import CellResult
from memlaw.law import published
from memlaw.law.bits import ANCHORS, in_bits, memory_bits
from memlaw.report import figures
from memlaw.report.families import Family
from memlaw.report.figure import plot
from memlaw.report.words import number


def bits_view(families: Sequence[Family]) -> dict[str, Any] | None:
    """None if no cell has its bits measured; results of earlier versions do not."""
    measured = [(number, family.name, _measured(family.results)) for number, family in enumerate(families)]
    views = [_family_view(number, name, cells) for number, name, cells in measured if cells]
    return {"families": views, "anchors": ANCHORS} if views else None


def _measured(members: Sequence[CellResult]) -> list[CellResult]:
    return [member for member in members if memory_bits(member).stored_bits is not None]


def _family_view(at: int, name: str, members: list[CellResult]) -> dict[str, Any]:
    caption = (
        "Bits per parameter of the adapter, against its rank. Filled: stored. Hollow: certified. Crosses: stored by "
        "the published adapters of Qwen3-8B, lengths 200 to 10,000. Log axes leave out adapters that hold nothing."
    )
    curve = figures.bits_curve(members, published.points())
    by_length = groupby(members, key=lambda member: member.cell.length)
    return {
        "name": name,
        "figure": plot(figures.sketch(figures.draw_bits, curve), f"bits{at}", caption),
        "rows": [_row(length, list(cells)) for length, cells in by_length],
    }


def _row(length: int, cells: list[CellResult]) -> list[str]:
    """One length: target tokens, their bits, and the maxima over ranks of what an adapter holds of them."""
    total = max(in_bits(length, cell.loss_memoryless) for cell in cells if cell.loss_memoryless is not None)
    maxima = [_maximum(name, cells) for name in ("stored_bits", "certified_bits", "bits_per_parameter")]
    return [number(length), number(total), *maxima]


def _maximum(name: str, cells: list[CellResult]) -> str:
    """The maximum, with the smallest rank that reaches it."""
    measured = [(bits, cell.cell.rank) for cell in cells if (bits := getattr(memory_bits(cell), name)) is not None]
    bits, rank = max(measured, key=lambda pair: (pair[0], -pair[1]), default=(None, 0))
    return f"{number(bits)} at rank {number(rank)}" if bits else number(bits, 1)
