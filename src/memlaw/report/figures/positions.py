"""Tokens and records by position: p along a target at one or several ranks, and where records fail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memlaw.core.errors import DataError
from memlaw.core.recall import LN2, RecallReport, RecordRecall, is_ordered
from memlaw.diagnosis.patterns import Correlation, patterns
from memlaw.report.figures.ink import HALF, INK, MUTED, ORDERED, STUBBORN, WIDTH, Bools, Floats, Ints, bools, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Strip:
    """p of every target token of one record; a long record is binned, and a bin shows its weakest token."""

    start: Ints
    """First position of each bin, from 0."""
    stop: Ints
    """One past the last position of each bin; a bin is one token unless the record has more tokens than bins."""
    p: Floats
    """Smallest p in the bin."""
    ordered: Bools
    """Every token of the bin has p > 1/2."""
    wrong: Bools
    """Greedy decoding missed a token of the bin; all False without decoding."""
    first_failure: int | None


def strip_curve(record: RecordRecall, *, bins: int = 240) -> Strip:
    """The record's tokens in at most `bins` bins of nearly equal size."""
    edges = np.linspace(0, record.length, min(bins, record.length) + 1).astype(np.int64)
    start, stop = edges[:-1], edges[1:]
    worst = np.maximum.reduceat(np.array(record.tokens.nll), start)
    missed = ~np.array(record.tokens.decoded or (True,) * record.length, dtype=np.bool_)
    return Strip(
        start=start,
        stop=stop,
        p=np.exp(-worst),
        ordered=bools(is_ordered(nll) for nll in worst),
        wrong=np.logical_or.reduceat(missed, start),
        first_failure=record.first_failure,
    )


def draw_strip(strip: Strip, axes: Axes) -> None:
    """p by position, the 1/2 line, and the first failure of greedy decoding."""
    from matplotlib.ticker import MaxNLocator

    colours = np.where(strip.ordered, ORDERED, STUBBORN)
    middle, width = (strip.start + strip.stop - 1) / 2, strip.stop - strip.start
    # The edge keeps bars of p near 0 visible.
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
    """Number of records whose first failure is in [edges[i], edges[i+1])."""

    edges: Ints
    first_failure: Ints
    """By the first wrong token of greedy decoding; zeros without decoding."""
    earliest_stubborn: Ints
    """By the first token with p <= 1/2."""
    decoded: bool


def failure_histogram(report: RecallReport, *, bins: int = 48) -> PositionHistogram:
    """Where records fail, in at most `bins` bins of a whole number of positions."""
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
    """Inches of a figure along positions: half a report wide, or the full width if the bars would be too thin."""
    return (HALF[0] if bars <= 64 else WIDTH, 2.5)


@dataclass(frozen=True, eq=False)
class Ladder:
    """p of every target token of one record under adapters of several ranks."""

    ranks: Floats
    """Rising."""
    p: Floats
    """[ranks, length]"""

    @property
    def ordered(self) -> Bools:
        """[ranks, length], where p > 1/2."""
        return self.p > 0.5


def ladder_curve(records: Mapping[float, RecordRecall]) -> Ladder:
    """One record under adapters of several ranks, given as rank -> recall. Raises DataError for unequal lengths."""
    lengths = sorted({record.length for record in records.values()})
    if len(lengths) != 1:
        raise DataError(
            f"The recalls of the record have {' and '.join(map(str, lengths)) or 'no'} target tokens, so their "
            "positions do not correspond. Pass the same record for every rank."
        )
    ranks = sorted(records)
    return Ladder(np.array(ranks, dtype=np.float64), np.exp(-np.array([records[rank].tokens.nll for rank in ranks])))


def draw_ladder(ladder: Ladder, axes: Axes) -> None:
    """One line per rank: p by position, and the line p = 1/2."""
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    shades = colormaps["viridis"](np.linspace(0.0, 0.82, len(ladder.ranks)))
    for rank, p, shade in zip(ladder.ranks, ladder.p, shades, strict=True):
        axes.plot(np.arange(len(p)), p, marker="." if len(p) <= 64 else "", color=shade, label=f"{rank:g}")
    axes.axhline(0.5, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set(ylim=(-0.02, 1.04), yticks=[0, 0.5, 1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("target position")
    axes.set_ylabel("p")
    axes.legend(title="rank", loc="upper left", bbox_to_anchor=(1.01, 1.02), labelspacing=0.35)


def draw_ladder_grid(ladder: Ladder, axes: Axes) -> None:
    """p by rank and position: purple above 1/2, orange below, paler towards 1/2; a line borders ordered tokens."""
    from matplotlib.ticker import MaxNLocator

    axes.pcolormesh(ladder.p, cmap="PuOr", vmin=0.0, vmax=1.0)
    rows, columns = ladder.p.shape
    above = ladder.ordered
    for row, column in zip(*np.nonzero(above[1:] != above[:-1]), strict=True):
        axes.plot([column, column + 1], [row + 1, row + 1], color=INK, linewidth=1.0)
    axes.set(xlim=(0, columns), ylim=(0, rows))
    axes.set_yticks(np.arange(rows) + 0.5, [f"{rank:g}" for rank in ladder.ranks])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_xlabel("target position")
    axes.set_ylabel("rank")


@dataclass(frozen=True, eq=False)
class FailureScatter:
    """Records by the positions of their first stubborn token and of the first failure of decoding."""

    earliest_stubborn: Ints
    first_failure: Ints
    records: Ints
    """Number of records at each pair of positions."""
    correlation: Correlation | None


def failure_scatter(report: RecallReport) -> FailureScatter:
    """The records that fail and have a stubborn token; decoding cannot fail before the first of these."""
    pairs = Counter(
        (item.earliest_stubborn, item.first_failure)
        for item in report.items
        if item.earliest_stubborn is not None and item.first_failure is not None
    )
    places = sorted(pairs)
    columns = np.array(places, dtype=np.int64).reshape(-1, 2)
    counts = np.array([pairs[place] for place in places], dtype=np.int64)
    return FailureScatter(columns[:, 0], columns[:, 1], counts, patterns(report).stubborn_vs_failure)


def draw_failure_scatter(scatter: FailureScatter, axes: Axes) -> None:
    """One dot per pair of positions, its area the number of records; on the diagonal, the stubborn token failed."""
    from matplotlib.ticker import MaxNLocator

    end = max(1, *scatter.first_failure.tolist()) + 0.5
    axes.plot([-0.5, end], [-0.5, end], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
    area = 12 + 160 * scatter.records / scatter.records.max()
    axes.scatter(scatter.earliest_stubborn, scatter.first_failure, s=area, color=STUBBORN, alpha=0.7, linewidths=0)
    axes.set(xlim=(-0.5, end), ylim=(-0.5, end))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("earliest stubborn token")
    axes.set_ylabel("first failure of decoding")


@dataclass(frozen=True, eq=False)
class Convergence:
    """Mean loss of one training in nats per target token, by optimizer step."""

    name: str
    steps: Ints
    loss: Floats


def convergence_curve(histories: Mapping[str, Iterable[tuple[int, float]]]) -> tuple[Convergence, ...]:
    """Curves of name -> (step, loss) pairs, as `StackProgress` reports them, without steps whose loss is not finite."""
    curves = []
    for name, history in histories.items():
        finite = sorted((step, loss) for step, loss in history if math.isfinite(loss))
        steps = np.array([step for step, _ in finite], dtype=np.int64)
        curves.append(Convergence(name, steps, np.array([loss for _, loss in finite], dtype=np.float64)))
    return tuple(curves)


def draw_convergence(curves: tuple[Convergence, ...], axes: Axes) -> None:
    """One line per training on a log axis of losses, and the line ln 2, the loss of a token with p = 1/2."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.82, len(curves)))
    for curve, shade in zip(curves, shades, strict=True):
        axes.plot(curve.steps, curve.loss, color=shade, label=curve.name)
    axes.axhline(LN2, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    log_axis(axes, "y")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="upper right")
