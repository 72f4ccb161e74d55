"""What adapters cost: facts recalled against harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memlaw.report.figures.ink import MUTED, ORDERED, Bools, Floats, floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_HARM = 0.01
"""Nats a token; the axis of harm is linear up to here and logarithmic beyond."""


@dataclass(frozen=True, eq=False)
class HarmScatter:
    """One point for each adapter."""

    harm: Floats
    """Loss difference on neutral text, nats a token."""
    recalled: Floats
    """Share of the facts recalled; NaN where unknown."""
    best: Bools
    """No other adapter recalls as much for less harm, or more for as little."""


def harm_scatter(harm: Sequence[float], recalled: Sequence[float | None]) -> HarmScatter:
    """The points, and which of them are on the Pareto front."""
    x, y = floats(harm), floats(np.nan if share is None else share for share in recalled)
    best = [
        bool(np.isfinite(y[k]) and not np.any((x <= x[k]) & (y >= y[k]) & ((x < x[k]) | (y > y[k]))))
        for k in range(len(x))
    ]
    return HarmScatter(x, y, np.array(best, dtype=np.bool_))


def draw_harm(scatter: HarmScatter, axes: Axes) -> None:
    """Filled: on the front, which the line joins; hollow: another adapter is better. Numbers are those of the table."""
    from matplotlib.ticker import FuncFormatter

    axes.set_xscale("symlog", linthresh=NO_HARM)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    front = np.flatnonzero(scatter.best)[np.argsort(scatter.harm[scatter.best])]
    axes.step(scatter.harm[front], 100 * scatter.recalled[front], where="post", color=MUTED, linewidth=1.0, zorder=1)
    for number, (harm, recalled, best) in enumerate(zip(scatter.harm, scatter.recalled, scatter.best, strict=True), 1):
        if np.isfinite(recalled):
            axes.plot([harm], [100 * recalled], "o", color=ORDERED, mfc=ORDERED if best else "none", markersize=6)
            axes.annotate(str(number), (harm, 100 * recalled), xytext=(5, -10), textcoords="offset points")
    axes.set_ylim(-4, 106)
    axes.set_xlabel("harm: loss difference on neutral text (nats a token)")
    axes.set_ylabel("facts recalled (%)")
