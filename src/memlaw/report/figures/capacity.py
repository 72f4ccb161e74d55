"""The law and its points: by rank, by length, as a surface, and predicted against measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from memlaw.core.points import LawPoint
from memlaw.law import Axis, size_of
from memlaw.law.points import is_saturated
from memlaw.report.figures.ink import LABELS, MUTED, ORDERED, STUBBORN, Bools, Floats, Quantity, bools, floats, log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIT_STYLES = (("o", ORDERED), ("s", STUBBORN), ("^", "#009e73"), ("D", "#cc79a7"))
"""Marker and colour of each law in one figure."""

_LINE_POINTS = 64

_MESH = 14
"""Lines of the surface in each direction."""


class LawPredictor(Protocol):
    """The part of a fitted law that a figure needs."""

    def predict(self, rank: float, length: float, /) -> float:
        """dL in nats per target token, for a size (LoRA rank or parameters) and a number of target tokens."""
        ...


@dataclass(frozen=True, eq=False)
class Series:
    """One line: all points of one length against size, or of one size against length."""

    fixed: float
    """The length, or size, of all points of the line."""
    x: Floats
    delta_loss: Floats
    saturated: Bools
    """Mean final loss of 0.69 or less: little is left to learn, so the cell tells little about capacity."""
    line_x: Floats
    line: Floats
    """The law's predictions at `line_x`; empty without a law."""


@dataclass(frozen=True, eq=False)
class LawCurve:
    """dL in nats per target token against size at each length, or against length at each size."""

    along: Quantity
    fixed: Quantity
    series: tuple[Series, ...]


@dataclass(frozen=True, eq=False)
class Agreement:
    """The predictions of one law and the measurements, both in nats per target token."""

    measured: Floats
    predicted: Floats
    saturated: Bools


def rank_curve(points: Sequence[LawPoint], law: LawPredictor | None = None, *, axis: Axis = "rank") -> LawCurve:
    """dL against size, one series per length; straight lines on log-log axes where b is small.

    `axis`: what size means, the rank or the adapter's parameters. Raises FitError for a point without it.
    """
    sizes = [size_of(point, axis) for point in points]
    predict = None if law is None else lambda length, size: law.predict(size, length)
    return LawCurve(axis, "length", _series([point.length for point in points], sizes, points, predict))


def length_curve(points: Sequence[LawPoint], law: LawPredictor | None = None, *, axis: Axis = "rank") -> LawCurve:
    """dL against length, one series per size; otherwise as `rank_curve`."""
    sizes = [size_of(point, axis) for point in points]
    predict = None if law is None else lambda size, length: law.predict(size, length)
    return LawCurve("length", axis, _series(sizes, [point.length for point in points], points, predict))


def agreement_curve(points: Sequence[LawPoint], law: LawPredictor, *, axis: Axis = "rank") -> Agreement:
    """Predicted against measured dL of every point; a perfect law puts them on the diagonal."""
    return Agreement(
        measured=floats(point.delta_loss for point in points),
        predicted=floats(law.predict(size_of(point, axis), point.length) for point in points),
        saturated=bools(is_saturated(point) for point in points),
    )


def _series(
    fixed: Sequence[float],
    along: Sequence[float],
    points: Sequence[LawPoint],
    predict: Callable[[float, float], float] | None,
) -> tuple[Series, ...]:
    """One series per value in `fixed`, its points by rising `along`; `predict` takes (fixed, along)."""
    series = []
    for value in sorted(set(fixed)):
        members = sorted((along[i], i) for i in range(len(points)) if fixed[i] == value)
        x = floats(at for at, _ in members)
        line_x = np.empty(0) if predict is None or x[0] == x[-1] else np.geomspace(x[0], x[-1], _LINE_POINTS)
        series.append(
            Series(
                fixed=value,
                x=x,
                delta_loss=floats(points[i].delta_loss for _, i in members),
                saturated=bools(is_saturated(points[i]) for _, i in members),
                line_x=line_x,
                line=line_x if predict is None else floats(predict(value, float(at)) for at in line_x),
            )
        )
    return tuple(series)


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
            label=f"{series.fixed:g}",
        )
    log_axis(axes, "x", np.unique(np.concatenate([s.x for s in curve.series])))
    log_axis(axes, "y")
    axes.set_xlabel(LABELS[curve.along])
    axes.set_ylabel("ΔL (nats per token)")
    axes.legend(
        title=curve.fixed,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.02),
        handletextpad=0.2,
        labelspacing=0.35,
    )


def draw_agreement(laws: Sequence[tuple[str, Agreement]], axes: Axes) -> None:
    """Predicted against measured, with the diagonal; one marker per law, hollow where the cell is saturated.

    Log axes leave out predictions that are not positive.
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
        log_axis(axes, side)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("measured ΔL (nats per token)")
    axes.set_ylabel("predicted ΔL (nats per token)")
    axes.legend(loc="upper left", handletextpad=0.2)


@dataclass(frozen=True, eq=False)
class LawSurface:
    """dL over size and length, all in log10; for the paper's form with b = 0 it is a surface."""

    axis: Axis
    size: Floats
    """[mesh]"""
    length: Floats
    """[mesh]"""
    predicted: Floats
    """[mesh lengths, mesh sizes]; NaN where the prediction is not positive."""
    points: Floats
    """[n, 3], size, length and dL of every measured point with dL > 0."""
    saturated: Bools
    """[n]"""


def law_surface(points: Sequence[LawPoint], law: LawPredictor, *, axis: Axis = "rank") -> LawSurface:
    """The law over the measured range of sizes and lengths, with the measured points."""
    gained = [point for point in points if point.delta_loss > 0]
    measured = np.array([[size_of(point, axis), point.length, point.delta_loss] for point in gained])
    low, high = measured.min(axis=0), measured.max(axis=0)
    size, length = (np.geomspace(low[side], high[side], _MESH) for side in (0, 1))
    predicted = np.array([[law.predict(float(r), float(at)) for r in size] for at in length])
    return LawSurface(
        axis=axis,
        size=np.log10(size),
        length=np.log10(length),
        predicted=np.log10(np.where(predicted > 0, predicted, np.nan)),
        points=np.log10(measured),
        saturated=bools(is_saturated(point) for point in gained),
    )


def draw_law_surface(surface: LawSurface, axes: Any) -> None:
    """The surface as a mesh and the points as markers (hollow: saturated), on three log axes of projection 3d.

    3D axes have no log scale, so logarithms are drawn and the ticks are labelled with plain numbers.
    """
    size, length = np.meshgrid(surface.size, surface.length)
    axes.plot_wireframe(size, length, surface.predicted, color=MUTED, linewidth=0.5)
    for kind, filled in ((~surface.saturated, True), (surface.saturated, False)):
        inside = surface.points[kind]
        axes.scatter(*inside.T, s=16, edgecolors=ORDERED, facecolors=ORDERED if filled else "none", depthshade=False)
    names = (LABELS[surface.axis], LABELS["length"], "ΔL (nats per token)")
    for axis, values, name in zip((axes.xaxis, axes.yaxis, axes.zaxis), surface.points.T, names, strict=True):
        ticks = sorted({float(f"{10**at:.2g}") for at in np.linspace(values.min(), values.max(), 4)})
        axis.set_ticks(np.log10(ticks), [f"{tick:,g}" for tick in ticks])
        axis.set_label_text(name)
        axis.labelpad = 8
    axes.view_init(elev=22, azim=-125)
    axes.set_box_aspect(None, zoom=0.82)
