"""Cells, as the template needs them: heatmaps and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memlaw.law import SATURATED
from memlaw.report import figures
from memlaw.report.families import Family
from memlaw.report.figure import plot

OPEN_ROWS = 12
"""A longer table of cells starts folded; printed, it is always whole."""


def cells_view(families: Sequence[Family]) -> list[dict[str, Any]]:
    """Each family with its heatmaps and its table."""
    return [_family_view(number, family) for number, family in enumerate(families)]


def _family_view(number: int, family: Family) -> dict[str, Any]:
    heatmaps, members = [], family.results
    loss, accuracy = figures.loss_grid(members), figures.accuracy_grid(members)
    if _has_values(loss):
        caption = (
            f"Mean final loss in nats per target token. The heavy line encloses saturated cells ({SATURATED} or less)."
        )
        heatmaps.append(_grid_figure(loss, f"loss{number}", caption))
    if _has_values(accuracy):
        caption = "Target tokens that greedy decoding reproduces, in percent (rounded down)."
        heatmaps.append(_grid_figure(accuracy, f"accuracy{number}", caption))
    return {
        "name": family.name,
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
