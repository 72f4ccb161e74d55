"""Cells, law and plan as the template takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from memlaw import figures
from memlaw.law import SATURATED
from memlaw.law.points import loss_table
from memlaw.records import CellResult
from memlaw.report.content import FittedLaw, ReportContent
from memlaw.report.words import count, interval, number, plan_size, share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPEN_ROWS = 12
"""A table of cells longer than this starts folded (and is printed in full)."""

_PIXELS_PER_INCH = 104
"""At which two half-width figures fill the page."""

_STOPS = 40
"""Most sizes, and most lengths, that the sliders of the law can stand at."""


def plot(figure: Figure, name: str, caption: str) -> dict[str, Any]:
    """An inline SVG that names itself to a screen reader and is never blown up, with its caption."""
    svg = figures.to_svg(figure, name=name)
    widest = f"max-width:{round(_PIXELS_PER_INCH * figure.get_figwidth())}px"
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" style="{widest}" ', 1)
    # Matplotlib escaped what it wrote, and the caption is escaped above.
    return {"svg": Markup(labelled), "caption": caption, "wide": figure.get_figwidth() > figures.HALF[0]}


def families(content: ReportContent) -> list[dict[str, Any]]:
    """Cells that differ in rank, length and seed only, each family with its heatmaps and its table."""
    families: dict[tuple[str, ...], list[CellResult]] = {}
    for result in content.cells:
        cell = result.cell
        families.setdefault((cell.model, cell.data, cell.placement, cell.train.method, cell.dtype), []).append(result)
    return [_family_view(number, members, content.sources) for number, members in enumerate(families.values())]


def _family_view(number: int, members: list[CellResult], sources: Mapping[str, str]) -> dict[str, Any]:
    cell = members[0].cell
    name = f"{sources.get(cell.data, f'data {cell.data[:8]}')}, {cell.train.method}, {cell.placement}, {cell.dtype}"
    members = sorted(members, key=lambda member: (member.cell.length, member.cell.rank, member.cell.train.seed))
    heatmaps = []
    loss, accuracy = figures.loss_grid(members), figures.accuracy_grid(members)
    if _has_values(loss):
        caption = f"Mean final loss, nats per target token. Beyond the heavy line it is {SATURATED} or less: saturated."
        heatmaps.append(_grid_figure(loss, f"loss{number}", caption))
    if _has_values(accuracy):
        caption = "Target tokens that greedy decoding gets right, in percent (rounded down)."
        heatmaps.append(_grid_figure(accuracy, f"accuracy{number}", caption))
    return {
        "name": name,
        "heatmaps": heatmaps,
        "cells": members,
        "several_seeds": len({member.cell.train.seed for member in members}) > 1,
        "open": len(members) <= OPEN_ROWS,
        "messages": [member for member in members if member.message],
    }


def _has_values(grid: figures.Grid) -> bool:
    return bool((grid.values >= 0).any())


def _grid_figure(grid: figures.Grid, name: str, caption: str) -> dict[str, Any]:
    return plot(figures.sketch(figures.draw_grid, grid, size=figures.grid_size(grid)), name, caption)


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
    sizes = _stops([figures.size_of(point, fit.axis) for point in fit.points])
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


def plan_view(plan: Mapping[str, Any]) -> dict[str, Any]:
    config = plan.get("lora_config")
    lines = [] if config is None else [f"    {key}={value!r},\n" for key, value in config.items()]
    notes = [plan.get("reason"), plan.get("extrapolates"), *plan.get("caveats", ())]
    return {
        "rows": [(label, text) for label, text in _plan_rows(plan) if text],
        "notes": [note for note in notes if note],
        "config": f"LoraConfig(\n{''.join(lines)})" if lines else None,
    }


def _plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text), the text empty where the plan does not say."""
    rank, saturation = plan["rank"], plan.get("saturation") or {}
    needed, law, cost = plan.get("loss_needed") or {}, plan.get("law") or {}, plan.get("cost") or {}
    most = f"; this placement allows {number(plan['largest_rank'])}" if plan.get("largest_rank") else ""
    loss = f"{number(needed.get('nats'))} nats a token, from {number(plan.get('loss_init'))}. {needed.get('why', '')}"
    over = [f"{name} {law[name][0]:g} to {law[name][1]:g}" for name in ("ranks", "lengths") if name in law]
    fitted = [str(law.get("source", "")), *([f"{law['form']} form"] if "form" in law else []), *over]
    size = f"{number(cost.get('adapter_parameters'))} parameters, {number(cost.get('adapter_bytes', 0) / 1000)} kB"
    return [
        ("memory set", f"{plan_size(plan)}, about {number(plan['bits'])} bits"),
        ("share to recall", share(plan["target"]) if "target" in plan else ""),
        ("placement", str(plan.get("placement") or "")),
        ("rank", f"{number(rank.get('value'))}{interval(rank)}{most}"),
        ("mean loss to reach", loss if needed else ""),
        (
            "mean loss under ln 2",
            f"from rank {number(saturation.get('value'))}{interval(saturation)}" if saturation else "",
        ),
        ("by the law of", ", ".join(fitted)),
        ("adapter", size if cost else ""),
        ("training", f"{number(cost['training_flops'])} operations" if cost.get("training_flops") else ""),
    ]
