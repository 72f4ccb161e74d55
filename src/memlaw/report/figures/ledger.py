"""The versions of a ledger: what comes back, what is harmed, how much more fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from memlaw.report.figures.ink import MUTED, ORDERED, STUBBORN, Floats, floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FEW = 25
"""Versions whose markers have room."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Values by version; NaN where a version has none."""

    versions: Floats
    values: dict[str, Floats]
    """Name of each line -> its values."""
    unit: str


@dataclass(frozen=True, eq=False)
class RoomCurve:
    """Target tokens by version; NaN where a version has no forecast."""

    versions: Floats
    held: Floats
    left: Floats
    low: Floats
    high: Floats
    """95% interval of what is left; infinite without an upper end."""


def lines(versions: Sequence[int], values: dict[str, Sequence[float | None]], unit: str) -> Lines:
    """Lines over versions; those without any value are left out."""
    known = {name: _with_gaps(line) for name, line in values.items() if any(value is not None for value in line)}
    return Lines(floats(versions), known, unit)


def room_curve(
    versions: Sequence[int], held: Sequence[int], room: Sequence[tuple[float, float, float | None] | None]
) -> RoomCurve:
    """Tokens held, and the room left as (median, low, high); a high of None is open."""
    left, low, high = (
        _with_gaps([None if one is None else np.inf if one[at] is None else one[at] for one in room]) for at in range(3)
    )
    return RoomCurve(floats(versions), floats(held), left, low, high)


def draw_lines(curve: Lines, axes: Axes) -> None:
    """Each line has its own colour, marker and dashes."""
    styles = ((ORDERED, "o", "-"), (STUBBORN, "s", (0, (4, 2))), (MUTED, "^", (0, (1, 1.5))))
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    for (name, values), (colour, marker, dashes) in zip(curve.values.items(), styles, strict=False):
        size = _size(curve.versions)
        axes.plot(curve.versions, values, color=colour, marker=marker, markersize=size, linestyle=dashes, label=name)
    if not any(np.nan_to_num(values).any() for values in curve.values.values()):
        axes.set_ylim(-1, 1)  # nothing but zeros has no scale of its own
    _label(axes, curve.unit)
    if len(curve.values) > 1:
        axes.legend(loc="best")


def draw_room(curve: RoomCurve, axes: Axes) -> None:
    """Filled circles: tokens held; hollow squares: room left, with its interval as a band."""
    closed = curve.high[np.isfinite(curve.high)]
    top = 1.15 * float(np.nanmax(np.concatenate([curve.held, curve.left, closed])))
    axes.fill_between(
        curve.versions, curve.low, np.minimum(curve.high, top), color=STUBBORN, alpha=0.18, linewidth=0, label="95%"
    )
    marks: dict[str, Any] = {"markersize": _size(curve.versions)}
    axes.plot(
        curve.versions, curve.left, "s", color=STUBBORN, linestyle=(0, (4, 2)), mfc="none", label="room left", **marks
    )
    axes.plot(curve.versions, curve.held, "o-", color=ORDERED, label="held", **marks)
    axes.set_ylim(bottom=0, top=top)
    _label(axes, "target tokens")
    axes.legend(loc="best")


def _size(versions: Floats) -> float:
    """Points; markers of many versions are small, so that they do not hide how the lines are dashed."""
    return 4.5 if len(versions) <= _FEW else 1.5


def _label(axes: Axes, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("version")
    axes.set_ylabel(unit)


def _with_gaps(values: Sequence[float | None]) -> Floats:
    return floats(np.nan if value is None else value for value in values)
