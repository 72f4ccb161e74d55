"""Cells as the template takes them: heatmaps and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memlaw.core.cells import Cell, CellResult
from memlaw.law import SATURATED
from memlaw.report import figures
from memlaw.report.content import ReportContent
from memlaw.report.figure import plot

OPEN_ROWS = 12
"""A table of cells longer than this starts folded (and is printed in full)."""


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
