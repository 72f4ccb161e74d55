"""Cells, law and plan as the template takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from memlaw import figures
from memlaw.law import SATURATED, size_of
from memlaw.law.points import loss_table
from memlaw.records import Cell, CellResult
from memlaw.report.content import FittedLaw, ReportContent
from memlaw.report.words import count, interval, number, plan_size, plan_target, share

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


def families(content: ReportContent) -> list[tuple[str, list[CellResult]]]:
    """(name, cells) of every family of cells that differ in rank, length and seed only; the cells in that order."""
    families: dict[tuple[str, ...], list[CellResult]] = {}
    for result in content.cells:
        cell = result.cell
        families.setdefault((cell.model, cell.data, cell.placement, cell.train.method, cell.dtype), []).append(result)
    return [(_name(members[0].cell, content.sources), sorted(members, key=_place)) for members in families.values()]


def _name(cell: Cell, sources: Mapping[str, str]) -> str:
    return f"{sources.get(cell.data, f'data {cell.data[:8]}')}, {cell.train.method}, {cell.placement}, {cell.dtype}"


def _place(result: CellResult) -> tuple[int, int, int]:
    return result.cell.length, result.cell.rank, result.cell.train.seed


def cells_view(families: Sequence[tuple[str, list[CellResult]]]) -> list[dict[str, Any]]:
    """Each family with its heatmaps and its table."""
    return [_family_view(number, name, members) for number, (name, members) in enumerate(families)]


def _family_view(number: int, name: str, members: list[CellResult]) -> dict[str, Any]:
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


def plan_view(plan: Mapping[str, Any]) -> dict[str, Any]:
    config = plan.get("lora_config") or {}
    lines = [f"    {key}={value!r},\n" for key, value in config.items()]
    to_paste = [f"LoraConfig(\n{''.join(lines)})"] if lines else []
    notes = [plan.get("reason"), plan.get("extrapolates"), *plan.get("caveats", ())]
    return {
        "rows": [(label, text) for label, text in _plan_rows(plan) if text],
        "notes": [note for note in notes if note],
        "config": "\n\n".join([*to_paste, *([plan["train"]] if plan.get("train") else [])]),
    }


def _plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text), the text empty where the plan does not say: those of earlier versions say less."""
    saturation, cost = plan.get("saturation") or {}, plan.get("cost") or {}
    chances = (f"rank {row['rank']}: {share(row['probability'])}" for row in plan.get("probabilities", ()))
    thumb = plan.get("rule_of_thumb")
    return [
        ("memory set", f"{plan_size(plan)}, about {number(plan['bits'])} bits"),
        ("to be reached", plan_target(plan.get("target"))),
        ("placement", str(plan.get("placement") or "")),
        ("rank", _plan_rank(plan)),
        ("probability", ", ".join(chances)),
        ("several adapters", _plan_split(plan.get("split") or {})),
        ("mean loss to reach", _plan_loss(plan)),
        (
            "mean loss under ln 2",
            f"from rank {number(saturation.get('value'))}{interval(saturation)}" if saturation else "",
        ),
        ("what it holds", _plan_capacity(plan.get("capacity") or {})),
        ("rule of thumb", f"rank {number(thumb)}: as many adapter parameters as target tokens" if thumb else ""),
        ("by the law of", _plan_law(plan.get("law") or {})),
        ("how near it is", " ".join((plan.get("law") or {}).get("near", ()))),
        ("adapter", _plan_adapter(cost)),
        ("training", _plan_work(cost)),
    ]


def _plan_rank(plan: Mapping[str, Any]) -> str:
    rank, most, sure = plan["rank"], plan.get("largest_rank"), plan.get("sure")
    certain = f"; 95 % sure from rank {number(sure)}" if sure else ""
    return f"{number(rank.get('value'))}{interval(rank)}{certain}" + (
        f"; this placement allows {number(most)}" if most else ""
    )


def _plan_split(split: Mapping[str, Any]) -> str:
    if not split:
        return ""
    return (
        f"{number(split['adapters'])} of rank {number(split['rank_each'])}, each for "
        f"{number(split['tokens_each'])} target tokens"
    )


def _plan_loss(plan: Mapping[str, Any]) -> str:
    needed = plan.get("loss_needed")
    if not needed:
        return ""
    return f"{number(needed.get('nats'))} nats a token, from {number(plan.get('loss_init'))}. {needed.get('why', '')}"


def _plan_capacity(capacity: Mapping[str, Any]) -> str:
    if not capacity:
        return ""
    full = capacity.get("saturates")
    under = f"; its mean loss is under ln 2 up to {number(full)}" if full else ""
    return f"rank {number(capacity['rank'])}: {number(capacity['tokens'])} target tokens{interval(capacity)}{under}"


def _plan_law(law: Mapping[str, Any]) -> str:
    over = [f"{name} {law[name][0]:g} to {law[name][1]:g}" for name in ("ranks", "lengths") if name in law]
    return ", ".join([str(law.get("source", "")), *([f"{law['form']} form"] if "form" in law else []), *over])


def _plan_adapter(cost: Mapping[str, Any]) -> str:
    if not cost:
        return ""
    optimizer = cost.get("optimizer_bytes")
    more = f"; {number(optimizer / 1000)} kB more to train it" if optimizer else ""
    size = number(cost.get("adapter_bytes", 0) / 1000)
    return f"{number(cost.get('adapter_parameters'))} parameters, {size} kB{more}"


def _plan_work(cost: Mapping[str, Any]) -> str:
    """What training takes at most, as far as it is known."""
    units = (("steps", "steps"), ("training_flops", "operations"), ("seconds", "s on the machine it was planned on"))
    return ", ".join(f"{number(cost[key])} {unit}" for key, unit in units if cost.get(key))
