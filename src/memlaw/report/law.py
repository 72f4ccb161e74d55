"""Laws as the template takes them."""

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
"""Most sizes, and most lengths, that the sliders of the law can stand at."""


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
        hollow = f" Hollow: saturated cells (mean final loss {SATURATED} or less, about ln 2)."
        missing = len(leading.points) - len(points)
        absent = f" Not on these log axes: {count(missing, 'cell')} without gain." if missing else ""
        for along, curve in ((leading.axis, figures.rank_curve), ("length", figures.length_curve)):
            figure = figures.sketch(figures.draw_law, curve(points, leading.law, axis=leading.axis))
            caption = f"ΔL, the loss that training removes, against {along}.{lines}{hollow}{absent}"
            shown.append(plot(figure, f"law-{along}", caption))
    laws = [(fit.form, figures.agreement_curve(fit.points, fit.law, axis=fit.axis)) for fit in fits if fit.law]
    if points and laws:
        if leading.law is not None:
            surface = figures.plane_surface(points, leading.law, axis=leading.axis)
            caption = f"The law as a surface ({leading.name}), on three logarithmic axes, and the cells around it."
            shown.append(plot(figures.sketch(figures.draw_plane, surface, projection="3d"), "plane", caption))
        figure = figures.sketch(figures.draw_agreement, laws)
        caption = (
            "Predicted against measured ΔL; a law without error puts every cell on the dashed line. Hollow: saturated."
        )
        shown.append(plot(figure, "agreement", caption))
    return shown


def _slider(fit: FittedLaw) -> dict[str, Any] | None:
    """What the law predicts at every stop of two sliders, inside what was measured; the script computes nothing."""
    if fit.law is None or not fit.points:
        return None
    sizes = _stops([size_of(point, fit.axis) for point in fit.points])
    lengths = _stops([point.length for point in fit.points])
    table = loss_table(fit.points)
    known = np.array(table).reshape(-1, 2)
    initial = np.interp(np.log(lengths), np.log(known[:, 0]), known[:, 1]) if table else None
    return {
        "axis": "rank" if fit.axis == "rank" else "a size in parameters of",
        "sizes": sizes,
        "lengths": lengths,
        "gain": [[round(fit.law.predict(size, length), 4) for size in sizes] for length in lengths],
        "initial": None if initial is None else [round(float(loss), 4) for loss in initial],
    }


def _stops(values: Sequence[float]) -> list[int]:
    """Whole numbers from the least to the greatest value, evenly spaced on a log axis."""
    return sorted({round(stop) for stop in np.geomspace(min(values), max(values), _STOPS)})
