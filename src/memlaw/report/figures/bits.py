"""Memory in bits per parameter of the adapter, against rank: stored, certified, published."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memlaw.core.cells import CellResult
from memlaw.core.points import LawPoint
from memlaw.law.bits import ANCHORS, Anchor, in_bits, memory_bits
from memlaw.law.published import VOCABULARY
from memlaw.report.figures.ink import LABELS, MUTED, Floats, floats, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class BitsSeries:
    """What adapters of several ranks hold of one length; means over seeds."""

    length: int
    rank: Floats
    """Rising."""
    stored: Floats
    """Bits per parameter."""
    certified: Floats
    """Bits per parameter of the certified records alone; NaN where not measured."""


@dataclass(frozen=True, eq=False)
class BitsCurve:
    """Bits per parameter against rank."""

    series: tuple[BitsSeries, ...]
    """One per length."""
    published: Floats
    """[n, 2], rank and stored bits per parameter of the published adapters."""


def bits_curve(results: Iterable[CellResult], published: Iterable[LawPoint] = ()) -> BitsCurve:
    """The bits of one family of cells; cells whose bits were not measured are left out.

    `published` are points of Qwen3-8B with their parameters; their L_init' is min(L_init, ln 151,936).
    """
    by_length: defaultdict[int, defaultdict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        bits = memory_bits(result)
        if bits.bits_per_parameter is not None:
            certified = math.nan if bits.certified_bits is None else bits.certified_bits / result.parameters
            by_length[result.cell.length][result.cell.rank].append((bits.bits_per_parameter, certified))
    series = []
    for length, ranks in sorted(by_length.items()):
        means = np.array([np.mean(ranks[rank], axis=0) for rank in sorted(ranks)])
        series.append(BitsSeries(length, floats(sorted(ranks)), means[:, 0], means[:, 1]))
    return BitsCurve(tuple(series), np.array([*map(_published, published)], dtype=np.float64).reshape(-1, 2))


def _published(point: LawPoint) -> tuple[float, float]:
    """(rank, stored bits per parameter); NaN if the point lacks a value."""
    if point.loss_init is None or point.final_loss is None or point.parameters is None:
        return point.rank, math.nan
    memoryless = min(point.loss_init, math.log(VOCABULARY))
    return point.rank, in_bits(point.length, max(0.0, memoryless - point.final_loss)) / point.parameters


def draw_bits(curve: BitsCurve, axes: Axes) -> None:
    """Filled: stored; hollow, dashed: certified; crosses: published. Log axes leave out adapters that hold nothing."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.82, len(curve.series)))
    for series, shade in zip(curve.series, shades, strict=True):
        stored, certified = (np.where(bits > 0, bits, np.nan) for bits in (series.stored, series.certified))
        axes.plot(series.rank, certified, "o", color=shade, linestyle=(0, (4, 3)), mfc="none", markersize=7.5)
        axes.plot(series.rank, stored, "o-", color=shade, label=f"{series.length:g}")
    if len(curve.published):
        axes.plot(*curve.published.T, "x", color=MUTED, zorder=1, label="Qwen3-8B,\npublished")
    for anchor in ANCHORS:
        _draw_anchor(anchor, axes)
    ranks = [curve.published[:, 0], *(series.rank for series in curve.series)]
    log_axis(axes, "x", np.unique(np.concatenate(ranks)))
    log_axis(axes, "y")
    axes.set_ylim(top=1.4 * axes.dataLim.ymax)
    axes.set_xlabel(LABELS["rank"])
    axes.set_ylabel("bits per parameter")
    axes.legend(title="length", loc="upper left", bbox_to_anchor=(1.01, 1.02), handletextpad=0.2, labelspacing=0.35)


def _draw_anchor(anchor: Anchor, axes: Axes) -> None:
    axes.axhspan(anchor.low, anchor.high, color=MUTED, alpha=0.4, linewidth=1.2, zorder=1)
    axes.annotate(
        f"{anchor.range}: {anchor.name}",
        (0.01, anchor.high),
        xytext=(0, 2),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=MUTED,
        fontsize=8.0,
    )
