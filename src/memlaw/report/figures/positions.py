"""Tokens and records by position: p along a target, at one rank and at several, and where records break."""

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
        ordered=bools(is_ordered(nll) for nll in worst),
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
    """One record as adapters of several ranks hold it: rank -> its recall. Raises DataError for different lengths."""
    lengths = sorted({record.length for record in records.values()})
    if len(lengths) != 1:
        raise DataError(
            f"The recalls of one record at several ranks have {' and '.join(map(str, lengths)) or 'no'} target tokens, "
            "so their positions do not correspond. Pass the same record for every rank."
        )
    ranks = sorted(records)
    return Ladder(np.array(ranks, dtype=np.float64), np.exp(-np.array([records[rank].tokens.nll for rank in ranks])))


def draw_ladder(ladder: Ladder, axes: Axes) -> None:
    """One line a rank: p by position, with the 1/2 line that each has to clear."""
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
    """Rank by position: purple where p > 1/2, orange where not, paler towards 1/2; a line borders what is ordered."""
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
    """Records by where their first stubborn token stands and where decoding first goes wrong."""

    earliest_stubborn: Ints
    first_failure: Ints
    records: Ints
    """How many records share the two positions."""
    correlation: Correlation | None


def failure_scatter(report: RecallReport) -> FailureScatter:
    """Over the records that fail and have a stubborn token; the first position bounds the second from below."""
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
    """A dot a pair of positions, its area the number of records; on the diagonal the stubborn token was the end."""
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
    """Mean loss of one training, nats per target token, by optimizer step."""

    name: str
    steps: Ints
    loss: Floats


def convergence_curve(histories: Mapping[str, Iterable[tuple[int, float]]]) -> tuple[Convergence, ...]:
    """Name -> (step, loss) pairs, as `StackProgress` reports them; steps whose loss is no number are left out."""
    curves = []
    for name, history in histories.items():
        known = sorted((step, loss) for step, loss in history if math.isfinite(loss))
        steps = np.array([step for step, _ in known], dtype=np.int64)
        curves.append(Convergence(name, steps, np.array([loss for _, loss in known], dtype=np.float64)))
    return tuple(curves)


def draw_convergence(curves: tuple[Convergence, ...], axes: Axes) -> None:
    """One line a training on a log axis of losses, with ln 2, under which the mean token is ordered."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.82, len(curves)))
    for curve, shade in zip(curves, shades, strict=True):
        axes.plot(curve.steps, curve.loss, color=shade, label=curve.name)
    axes.axhline(LN2, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    log_axis(axes, "y")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="upper right")
