"""Shared by all figures: the style, numbers to a figure, a figure to SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

Quantity = Literal["rank", "parameters", "length"]

Numbers = TypeVar("Numbers")

HALF = (5.0, 3.6)
"""Inches: half the width of a report."""

WIDTH = 10.4
"""Inches: the width of a report."""

INK = "#1f2328"
MUTED = "#6a737d"
RULE = "#d6dade"
ORDERED = "#0072b2"
STUBBORN = "#d55e00"

STYLE: dict[RcKeyType, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "memlaw",
}

LABELS: dict[Quantity, str] = {
    "rank": "rank r",
    "parameters": "parameters of the adapter",
    "length": "length l (tokens)",
}


def sketch(
    draw: Callable[[Numbers, Axes], None],
    numbers: Numbers,
    *,
    size: tuple[float, float] = HALF,
    projection: Literal["3d"] | None = None,
) -> Figure:
    """A new figure with `numbers` drawn on a single set of axes; `size` in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(numbers, figure.add_subplot(projection=projection))
    return figure


def to_svg(figure: Figure, *, name: str = "figure") -> str:
    """The figure as one `<svg>` element. Equal numbers give equal bytes: no date, no random identifiers.

    Text stays text, in the reader's sans-serif font. Every identifier starts with `name`, so that one page can hold
    several figures.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', lambda match: f"{match[1]}{name}-", svg)


def log_axis(axes: Axes, side: str, values: Floats | None = None) -> None:
    """Log scale with plain numbers: ticks at those of `values` that fit, or at 1, 2, 3, 5, 7 x 10^k."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if side == "x" else axes.yaxis
    (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)) if values is None else FixedLocator(_thin(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thin(values: Floats) -> list[float]:
    """Those of the rising values, from the largest down, whose labels fit on a log axis half a report wide."""
    span = float(np.log(values[-1] / values[0])) or 1.0
    kept = [float(values[-1])]
    for value in values[-2::-1]:
        room = 0.03 + 0.018 * len(f"{kept[-1]:g}")
        if np.log(kept[-1] / value) >= room * span:
            kept.append(float(value))
    return kept


def bools(values: Iterable[bool]) -> Bools:
    return np.fromiter(values, dtype=np.bool_)


def floats(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)
