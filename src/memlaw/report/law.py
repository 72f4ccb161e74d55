"""Fitted laws, as the template needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memlaw.law import SATURATED, size_of
from memlaw.law.points import loss_table
from memlaw.report import figures
from memlaw.report.content import FittedLaw
from memlaw.report.figure import plot
from memlaw.report.words import count

_STOPS = 40
"""Maximum number of positions of each slider of the law."""


def law_view(fits: Sequence[FittedLaw]) -> dict[str, Any] | None:
    if not fits:
        return None
    names = dict.fromkeys(name for fit in fits for name in fit.summary.get("parameters", {}))
    return {
        "fits": fits,
        "axis": fits[0].axis,
        "parameters": list(names),
        "slider": _slider(fits[0]),
        "figures": _law_figures(fits),
    }


def _law_figures(fits: Sequence[FittedLaw]) -> list[dict[str, Any]]:
    leading = fits[0]
    shown = []
    points = [point for point in leading.points if point.delta_loss > 0]
    if points:
        lines = f" Lines: {leading.name}." if leading.law is not None else ""
        hollow = f" Hollow: saturated cells (mean final loss {SATURATED} nats, about ln 2, or less)."
        missing = len(leading.points) - len(points)
        absent = f" Log axes leave out {count(missing, 'cell')} without gain." if missing else ""
        for along, curve in ((leading.axis, figures.rank_curve), ("length", figures.length_curve)):
            figure = figures.sketch(figures.draw_law, curve(points, leading.law, axis=leading.axis))
            caption = f"ΔL, the loss removed by training, against {along}.{lines}{hollow}{absent}"
            shown.append(plot(figure, f"law-{along}", caption))
    laws = [(fit.form, figures.agreement_curve(fit.points, fit.law, axis=fit.axis)) for fit in fits if fit.law]
    if points and laws:
        if leading.law is not None:
            surface = figures.law_surface(points, leading.law, axis=leading.axis)
            caption = f"The law as a surface ({leading.name}) with the measured cells, on three log axes."
            shown.append(plot(figures.sketch(figures.draw_law_surface, surface, projection="3d"), "plane", caption))
        figure = figures.sketch(figures.draw_agreement, laws)
        caption = (
            "Predicted against measured ΔL; a perfect law puts every cell on the dashed line. Hollow: saturated cells."
        )
        shown.append(plot(figure, "agreement", caption))
    return shown


def _slider(fit: FittedLaw) -> dict[str, Any] | None:
    """Predictions at every position of two sliders, within the measured range, so that the script computes none."""
    if fit.law is None or not fit.points:
        return None
    sizes = _stops([size_of(point, fit.axis) for point in fit.points])
    lengths = _stops([point.length for point in fit.points])
    table = loss_table(fit.points)
    by_length = np.array(table).reshape(-1, 2)
    initial = np.interp(np.log(lengths), np.log(by_length[:, 0]), by_length[:, 1]) if table else None
    return {
        "axis": fit.axis,
        "sizes": sizes,
        "lengths": lengths,
        "gain": [[round(fit.law.predict(size, length), 4) for size in sizes] for length in lengths],
        "initial": None if initial is None else [round(float(loss), 4) for loss in initial],
    }


def _stops(values: Sequence[float]) -> list[int]:
    """Whole numbers from the smallest to the largest value, evenly spaced on a log axis."""
    return sorted({round(stop) for stop in np.geomspace(min(values), max(values), _STOPS)})
