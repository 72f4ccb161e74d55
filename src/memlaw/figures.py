"""Figures, in two halves: `*_curve` and `*_grid` give numbers, `draw_*` puts numbers on axes and computes nothing.

    figure = sketch(draw_law, rank_curve(points, law))
    svg = to_svg(figure, name="rank")

Tests and tables read the numbers; the ink is thin. Figures are matplotlib's `Figure` objects: pyplot and its global
state are never touched, and matplotlib is imported only once something is drawn. No text of a user's data goes into
a figure (a caption can say which record it shows), so nothing in one can be mistaken for markup.

Colours are safe for colour-blind readers, and no meaning rests on colour alone: filled and hollow markers, printed
values, the 1/2 line. The figures are those of arXiv 2605.30260 that need no third dimension.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from memlaw.diagnosis import is_ordered
from memlaw.errors import FitError
from memlaw.law import SATURATED, Axis
from memlaw.law.points import is_saturated
from memlaw.records import CellResult, LawPoint, RecallReport, RecordRecall

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
"""Inches; two of these stand side by side in a report."""
WIDTH = 10.4
"""Inches; what fills a report's width."""

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
_FIT_STYLES = (("o", ORDERED), ("s", STUBBORN), ("^", "#009e73"), ("D", "#cc79a7"))
"""Marker and colour of the first, second, ... law in one picture."""
_LABELS: dict[Quantity, str] = {
    "rank": "rank r",
    "parameters": "parameters of the adapter",
    "length": "length l (tokens)",
}
_LINE_POINTS = 64


class LawPredictor(Protocol):
    """What a figure needs of a fitted law."""

    def predict(self, rank: float, length: float, /) -> float:
        """dL in nats per target token at this size (LoRA rank, or parameters) and number of target tokens."""
        ...


# --- the law against its points --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Series:
    """One line of a family: everything measured at one length (or rank), by the other."""

    held: float
    """The length, or size, that is the same along the line."""
    x: Floats
    delta_loss: Floats
    saturated: Bools
    """Mean final loss at or under 0.69: there is little left to lose, and the cell says little of capacity."""
    line_x: Floats
    line: Floats
    """What the law predicts at `line_x`; empty without a law."""


@dataclass(frozen=True, eq=False)
class LawCurve:
    """dL in nats per target token against size at each length, or against length at each size."""

    along: Quantity
    held: Quantity
    series: tuple[Series, ...]


@dataclass(frozen=True, eq=False)
class Agreement:
    """One law's predictions beside what was measured, both in nats per target token."""

    measured: Floats
    predicted: Floats
    saturated: Bools


def rank_curve(points: Sequence[LawPoint], law: LawPredictor | None = None, *, axis: Axis = "rank") -> LawCurve:
    """dL against size, one series a length; straight lines on two log axes wherever b is small.

    `axis` is what the law calls size: the rank, or the adapter's parameters. Raises FitError for a point without it.
    """
    sizes = [_size(point, axis) for point in points]
    predict = None if law is None else lambda length, size: law.predict(size, length)
    return LawCurve(axis, "length", _series([point.length for point in points], sizes, points, predict))


def length_curve(points: Sequence[LawPoint], law: LawPredictor | None = None, *, axis: Axis = "rank") -> LawCurve:
    """dL against length, one series a size; otherwise as `rank_curve`."""
    sizes = [_size(point, axis) for point in points]
    predict = None if law is None else lambda size, length: law.predict(size, length)
    return LawCurve("length", axis, _series(sizes, [point.length for point in points], points, predict))


def agreement_curve(points: Sequence[LawPoint], law: LawPredictor, *, axis: Axis = "rank") -> Agreement:
    """Predicted against measured dL of every point; a perfect law puts them on the diagonal."""
    return Agreement(
        measured=_floats(point.delta_loss for point in points),
        predicted=_floats(law.predict(_size(point, axis), point.length) for point in points),
        saturated=_bools(is_saturated(point) for point in points),
    )


def _series(
    held: Sequence[float],
    along: Sequence[float],
    points: Sequence[LawPoint],
    predict: Callable[[float, float], float] | None,
) -> tuple[Series, ...]:
    """One series for each value in `held`, its points by rising `along`; `predict` takes (held, along)."""
    series = []
    for value in sorted(set(held)):
        members = sorted((along[i], i) for i in range(len(points)) if held[i] == value)
        x = _floats(at for at, _ in members)
        line_x = np.empty(0) if predict is None or x[0] == x[-1] else np.geomspace(x[0], x[-1], _LINE_POINTS)
        series.append(
            Series(
                held=value,
                x=x,
                delta_loss=_floats(points[i].delta_loss for _, i in members),
                saturated=_bools(is_saturated(points[i]) for _, i in members),
                line_x=line_x,
                line=line_x if predict is None else _floats(predict(value, float(at)) for at in line_x),
            )
        )
    return tuple(series)


def _size(point: LawPoint, axis: Axis) -> float:
    if axis == "rank":
        return point.rank
    if point.parameters is None:
        raise FitError(
            f"The point at rank {point.rank:g}, length {point.length:g} has no number of parameters, which this law "
            f"takes for size. Give the column parameters, or fit the law in ranks."
        )
    return point.parameters


def draw_law(curve: LawCurve, axes: Axes) -> None:
    """Points and fitted lines on log-log axes; hollow markers are saturated cells."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.82, len(curve.series)))
    for series, shade in zip(curve.series, shades, strict=True):
        visible = series.line > 0
        axes.plot(series.line_x[visible], series.line[visible], color=shade)
        axes.plot(series.x, series.delta_loss, "o", color=shade, markerfacecolor="none")
        axes.plot(
            series.x[~series.saturated],
            series.delta_loss[~series.saturated],
            "o",
            color=shade,
            label=f"{series.held:g}",
        )
    _log_axis(axes, "x", np.unique(np.concatenate([s.x for s in curve.series])))
    _log_axis(axes, "y")
    axes.set_xlabel(_LABELS[curve.along])
    axes.set_ylabel("ΔL (nats per token)")
    axes.legend(
        title=curve.held,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        handletextpad=0.2,
        labelspacing=0.35,
    )


def draw_agreement(laws: Sequence[tuple[str, Agreement]], axes: Axes) -> None:
    """Predicted against measured, with the diagonal; one marker a law, hollow where the cell is saturated.

    A prediction that is not positive has no place on the log axes.
    """
    everything = np.concatenate([np.concatenate([law.measured, law.predicted]) for _, law in laws])
    positive = everything[everything > 0]
    ends = np.array([positive.min() / 1.12, positive.max() * 1.12])
    axes.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    for (name, law), (marker, colour) in zip(laws, itertools.cycle(_FIT_STYLES), strict=False):
        inside = ~law.saturated
        axes.plot(law.measured, law.predicted, marker, color=colour, markerfacecolor="none")
        axes.plot(law.measured[inside], law.predicted[inside], marker, color=colour, label=name)
    for side in ("x", "y"):
        _log_axis(axes, side)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("measured ΔL (nats per token)")
    axes.set_ylabel("predicted ΔL (nats per token)")
    axes.legend(loc="upper left", handletextpad=0.2)


# --- rank x length ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grid:
    """One measured quantity over rank and length; NaN where no cell finished or the quantity was not measured."""

    quantity: Literal["loss", "accuracy"]
    ranks: Ints
    lengths: Ints
    values: Floats
    """[lengths, ranks]; means over seeds."""


def loss_grid(cells: Iterable[CellResult]) -> Grid:
    """Mean final loss, nats per target token, of cells that differ in rank, length and seed only."""
    return _grid("loss", [(cell, cell.loss_final) for cell in cells])


def accuracy_grid(cells: Iterable[CellResult]) -> Grid:
    """Share of target tokens that greedy decoding gets right (acc_token), likewise."""
    return _grid("accuracy", [(cell, cell.acc_token) for cell in cells])


def _grid(quantity: Literal["loss", "accuracy"], cells: Sequence[tuple[CellResult, float | None]]) -> Grid:
    ranks = sorted({cell.cell.rank for cell, _ in cells})
    lengths = sorted({cell.cell.length for cell, _ in cells})
    values = np.full((len(lengths), len(ranks)), np.nan)
    measured: dict[tuple[int, int], list[float]] = {}
    for cell, value in cells:
        if cell.status == "finished" and value is not None:
            measured.setdefault((cell.cell.length, cell.cell.rank), []).append(value)
    for (length, rank), seeds in measured.items():
        values[lengths.index(length), ranks.index(rank)] = np.mean(seeds)
    return Grid(quantity, np.array(ranks, dtype=np.int64), np.array(lengths, dtype=np.int64), values)


def draw_grid(grid: Grid, axes: Axes) -> None:
    """A heatmap with its values printed; blank where missing. The heavy line of a loss map encloses saturated cells."""
    from matplotlib import colormaps

    shades = colormaps["YlOrBr" if grid.quantity == "loss" else "GnBu"]
    top = np.nanmax(grid.values, initial=1e-9) if grid.quantity == "loss" else 1.0
    axes.pcolormesh(grid.values, cmap=shades, vmin=0.0, vmax=top * 1.15, edgecolors="white", linewidth=1.0)
    small = 6.5 if len(grid.ranks) > 8 else 8.0
    for (row, column), value in np.ndenumerate(grid.values):
        if np.isfinite(value):
            colour = "white" if _luminance(shades(value / (top * 1.15))) < 0.4 else INK
            text = f"{value:.2f}" if grid.quantity == "loss" else f"{math.floor(100 * value)}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=small)
    if grid.quantity == "loss":
        _outline(grid.values <= SATURATED, axes)
    axes.set_xticks(np.arange(len(grid.ranks)) + 0.5, [str(rank) for rank in grid.ranks])
    axes.set_yticks(np.arange(len(grid.lengths)) + 0.5, [str(length) for length in grid.lengths])
    axes.set_xlabel(_LABELS["rank"])
    axes.set_ylabel(_LABELS["length"])
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def grid_size(grid: Grid) -> tuple[float, float]:
    """Inches for one of two heatmaps side by side: as tall as its lengths need."""
    return HALF[0], 0.75 + 0.34 * max(3, len(grid.lengths))


def _outline(inside: Bools, axes: Axes) -> None:
    """A line along every border between cells that are inside and cells that are not."""
    for row, column in zip(*np.nonzero(inside[:, 1:] != inside[:, :-1]), strict=True):
        axes.plot([column + 1, column + 1], [row, row + 1], color=INK, linewidth=1.6, solid_capstyle="round")
    for row, column in zip(*np.nonzero(inside[1:] != inside[:-1]), strict=True):
        axes.plot([column, column + 1], [row + 1, row + 1], color=INK, linewidth=1.6, solid_capstyle="round")


def _luminance(colour: tuple[float, float, float, float]) -> float:
    """From 0 (black) to 1 (white), of an sRGB colour; its gamma taken as 2."""
    red, green, blue = (channel * channel for channel in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# --- tokens and records ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Strip:
    """p of every target token of one record. A long record is binned: a bin stands for its weakest token."""

    start: Ints
    """First position of each bin, from 0."""
    stop: Ints
    """One past the last position of each bin; bins of one token unless the record is longer than `bins`."""
    p: Floats
    """Smallest p in the bin."""
    ordered: Bools
    """Every token of the bin has p > 1/2."""
    wrong: Bools
    """Greedy decoding missed a token of the bin; all False where nothing was decoded."""
    first_failure: int | None


def strip_curve(record: RecordRecall, *, bins: int = 240) -> Strip:
    """The record's tokens, in at most `bins` bins of (nearly) the same number of tokens."""
    edges = np.linspace(0, record.length, min(bins, record.length) + 1).astype(np.int64)
    start, stop = edges[:-1], edges[1:]
    worst = np.maximum.reduceat(np.array(record.tokens.nll), start)
    missed = ~np.array(record.tokens.decoded or (True,) * record.length, dtype=np.bool_)
    return Strip(
        start=start,
        stop=stop,
        p=np.exp(-worst),
        ordered=_bools(is_ordered(nll) for nll in worst),
        wrong=np.logical_or.reduceat(missed, start),
        first_failure=record.first_failure,
    )


def draw_strip(strip: Strip, axes: Axes) -> None:
    """p by position, the 1/2 line, and the first failure of greedy decoding."""
    from matplotlib.ticker import MaxNLocator

    colours = np.where(strip.ordered, ORDERED, STUBBORN)
    middle, width = (strip.start + strip.stop - 1) / 2, strip.stop - strip.start
    # The edge keeps a bar of p near 0 visible.
    axes.bar(middle, strip.p, width=0.86 * width, color=colours, edgecolor=colours, linewidth=0.8)
    axes.axhline(0.5, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    if strip.first_failure is not None:
        axes.plot(strip.first_failure, 1.06, "v", color=INK, clip_on=False, markersize=6)
    axes.set(xlim=(-0.5, strip.stop[-1] - 0.5), ylim=(0, 1.1), yticks=[0, 0.5, 1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False)
    axes.set_xlabel("target position")
    axes.set_ylabel("p")


@dataclass(frozen=True, eq=False)
class PositionHistogram:
    """Number of records whose trouble begins in [edges[i], edges[i+1])."""

    edges: Ints
    first_failure: Ints
    """By the first wrong token of greedy decoding; zeros where nothing was decoded."""
    earliest_stubborn: Ints
    """By the first token with p <= 1/2."""
    decoded: bool


def failure_curve(report: RecallReport, *, bins: int = 48) -> PositionHistogram:
    """Where records break, in at most `bins` bins of a whole number of positions."""
    longest = max(item.length for item in report.items)
    step = -(-longest // bins)
    edges = np.arange(0, longest + step, step, dtype=np.int64)

    def count(positions: Iterable[int | None]) -> Ints:
        return np.histogram([p for p in positions if p is not None], bins=edges)[0].astype(np.int64)

    return PositionHistogram(
        edges=edges,
        first_failure=count(item.first_failure for item in report.items),
        earliest_stubborn=count(item.earliest_stubborn for item in report.items),
        decoded=report.acc_em is not None,
    )


def draw_failures(histogram: PositionHistogram, axes: Axes) -> None:
    """Bars: first failures of greedy decoding. Line: earliest stubborn tokens."""
    from matplotlib.ticker import MaxNLocator

    borders = histogram.edges - 0.5
    if histogram.decoded:
        middle, width = (borders[:-1] + borders[1:]) / 2, np.diff(borders)
        name = "first failure of greedy decoding"
        axes.bar(middle, histogram.first_failure, width=0.86 * width, color=STUBBORN, label=name)
    axes.stairs(histogram.earliest_stubborn, borders, color=ORDERED, linewidth=1.4, label="earliest stubborn token")
    axes.set_xlim(borders[0], borders[-1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="x")
    axes.set_xlabel("target position")
    axes.set_ylabel("records")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2)


def positions_size(bars: int) -> tuple[float, float]:
    """Inches for a figure along positions: half a report's width, or all of it where the bars would be too thin."""
    return (HALF[0] if bars <= 64 else WIDTH, 2.5)


# --- ink -------------------------------------------------------------------------------------------------------------


def sketch(draw: Callable[[Numbers, Axes], None], numbers: Numbers, *, size: tuple[float, float] = HALF) -> Figure:
    """A new figure in the house style with `numbers` drawn on its one pair of axes; `size` in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(numbers, figure.add_subplot())
    return figure


def to_svg(figure: Figure, *, name: str = "figure") -> str:
    """The figure as one `<svg>` element, the same bytes for the same numbers: no date, no random identifier.

    Text stays text, in the reader's sans-serif font. Every identifier begins with `name`, so that several figures can
    stand in one page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', lambda found: f"{found[1]}{name}-", svg)


def _log_axis(axes: Axes, side: str, values: Floats | None = None) -> None:
    """Log scale with plain numbers: a tick at each of `values` as far as they fit, or at 1, 2, 3, 5, 7 x 10^k."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if side == "x" else axes.yaxis
    (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)) if values is None else FixedLocator(_thin(values)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thin(values: Floats) -> list[float]:
    """The rising values, from the largest down, whose labels have room on a log axis half a report wide."""
    span = float(np.log(values[-1] / values[0])) or 1.0
    kept = [float(values[-1])]
    for value in values[-2::-1]:
        room = 0.03 + 0.018 * len(f"{kept[-1]:g}")
        if np.log(kept[-1] / value) >= room * span:
            kept.append(float(value))
    return kept


def _bools(values: Iterable[bool]) -> Bools:
    return np.fromiter(values, dtype=np.bool_)


def _floats(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)
