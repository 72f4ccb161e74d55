"""Points prepared for a fit: replicates grouped into cells, saturated cells, L_init by length, checks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from memlaw.core.errors import FitError
from memlaw.core.points import LawPoint
from memlaw.law.curve import FORMS, Form
from memlaw.law.growth import Array

Axis = Literal["rank", "parameters"]

SATURATED = 0.69
"""Final loss (nats) at or below which a cell is saturated: it shows that the text fits, not how much more would. The
paper's cut, just below ln 2."""

_LARGEST_LOSS = 1e4
_LARGEST_SIZE = 1e15
_LEAST_START = 1e-6


@dataclass(frozen=True, eq=False)
class Cells:
    """m cells; a cell is all runs of one size and length."""

    size: Array
    """[m], rank or parameters."""
    length: Array
    """[m], target tokens."""
    loss_init: Array
    """[m], nats; NaN if no run of this length has a final loss."""
    runs: tuple[Array, ...]
    """dL of each run in nats, one array for each cell."""

    @property
    def delta(self) -> Array:
        """[m], mean dL of each cell."""
        return np.array([runs.mean() for runs in self.runs])


def size_of(point: LawPoint, axis: Axis) -> float:
    """The size of this point in units of `axis`. Raises FitError if the point lacks it."""
    if axis == "rank":
        return point.rank
    if point.parameters is None:
        raise FitError(
            f"The cell at rank {point.rank:g}, length {point.length:g} has no number of parameters, which a law over "
            "parameters needs. Add the column parameters, or fit the law in ranks."
        )
    return point.parameters


def is_saturated(point: LawPoint) -> bool:
    """L_final <= 0.69 nats. A cell of unknown L_final counts as unsaturated."""
    return point.final_loss is not None and point.final_loss <= SATURATED


def loss_table(points: Iterable[LawPoint]) -> tuple[tuple[float, float], ...]:
    """(length, mean L_init in nats) by rising length; empty if no final loss is known."""
    seen: defaultdict[float, list[float]] = defaultdict(list)
    for point in points:
        if point.loss_init is not None:
            seen[point.length].append(point.loss_init)
    return tuple((length, math.fsum(seen[length]) / len(seen[length])) for length in sorted(seen))


def groups(points: Iterable[LawPoint], axis: Axis) -> dict[tuple[float, float], list[LawPoint]]:
    """(size, length) -> the points of that cell."""
    cells: defaultdict[tuple[float, float], list[LawPoint]] = defaultdict(list)
    for point in points:
        cells[size_of(point, axis), point.length].append(point)
    return cells


def memoryless_table(points: Iterable[LawPoint]) -> tuple[tuple[float, float], ...]:
    """(length, mean L_init' in nats) by rising length; empty if none is known."""
    return loss_table(points_for_form("memory", points))


def points_for_form(form: Form, points: Iterable[LawPoint]) -> tuple[LawPoint, ...]:
    """Points with dL as the form counts it: from L_init, or in the memory form from L_init'."""
    if not FORMS[form].memoryless:
        return tuple(points)
    return tuple(
        replace(point, delta_loss=point.loss_memoryless - point.final_loss)
        for point in points
        if point.loss_memoryless is not None and point.final_loss is not None
    )


def usable(points: Iterable[LawPoint], form: Form, axis: Axis) -> tuple[LawPoint, ...]:
    """The points a form is fitted to: those with a final loss for a bounded form, otherwise those of unsaturated cells.

    The mean of a cell's runs decides whether it is saturated: leaving out only its best runs would bias the law.
    """
    points = tuple(points)
    if FORMS[form].bounded:
        known = tuple(point for point in points if point.final_loss is not None)
        return tuple(p for p in known if p.loss_memoryless is not None) if FORMS[form].memoryless else known
    kept = {id(point) for runs in groups(points, axis).values() if not _saturated_cell(runs) for point in runs}
    return tuple(point for point in points if id(point) in kept)


def all_saturated(points: Iterable[LawPoint], axis: Axis) -> bool:
    return all(_saturated_cell(runs) for runs in groups(points, axis).values())


def cells_of(points: Iterable[LawPoint], axis: Axis, table: Iterable[tuple[float, float]]) -> Cells:
    """The points grouped into cells; `table` is L_init by length."""
    runs_of = groups(points, axis)
    measured = dict(table)
    size, length = np.array(list(runs_of), dtype=float).reshape(-1, 2).T
    return Cells(
        size,
        length,
        loss_init=np.array([measured.get(at, math.nan) for at in length]),
        runs=tuple(np.array([point.delta_loss for point in runs], dtype=float) for runs in runs_of.values()),
    )


def check(points: Sequence[LawPoint], axis: Axis) -> None:
    """Raises FitError for points that are not measurements, or of several placements if the axis is the rank."""
    if not points:
        raise FitError("There are no cells to fit. Run `memlaw probe`, or pass a CSV file of points.")
    for point in points:
        named = f"The cell at rank {point.rank:g}, length {point.length:g}"
        sizes = [point.rank, point.length, size_of(point, axis)]
        losses = [loss for loss in (point.delta_loss, point.final_loss) if loss is not None]
        if not all(0 < size < _LARGEST_SIZE for size in sizes) or not all(abs(at) < _LARGEST_LOSS for at in losses):
            raise FitError(
                f"{named} is not a measurement: rank and length must be above 0, and every loss finite and under "
                f"{_LARGEST_LOSS:,.0f} nats. Remove cells that did not finish."
            )
        if point.loss_init is not None and point.loss_init < _LEAST_START:
            raise FitError(
                f"{named} began at {point.loss_init:g} nats (final_loss + delta_loss). A loss is never negative, and "
                "a loss of 0 leaves nothing to learn. Check the columns."
            )
        if point.loss_memoryless is not None and not _LEAST_START <= point.loss_memoryless < _LARGEST_LOSS:
            raise FitError(
                f"{named} has an L_init' of {point.loss_memoryless:g} nats, but a loss must be finite and above 0."
            )
    if axis == "rank":
        _check_one_placement(points)


def _check_one_placement(points: Iterable[LawPoint]) -> None:
    seen: dict[float, float] = {}
    for point in points:
        if point.parameters is None:
            continue
        other = seen.setdefault(point.rank, point.parameters)
        if other != point.parameters:
            raise FitError(
                f"Cells of rank {point.rank:g} have {other:,.0f} and {point.parameters:,.0f} parameters, so they are "
                "of several placements, which have no common law in ranks. Fit one placement, or fit over parameters "
                '(axis="parameters").'
            )


def _saturated_cell(runs: Sequence[LawPoint]) -> bool:
    known = [point.final_loss for point in runs if point.final_loss is not None]
    return bool(known) and math.fsum(known) / len(known) <= SATURATED
