"""Heatmaps of a sweep: one measured quantity over rank and length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from memlaw.core.cells import CellResult
from memlaw.law import SATURATED
from memlaw.report.figures.ink import HALF, INK, LABELS, Bools, Floats, Ints

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Grid:
    """One quantity over rank and length; NaN where no cell finished or the quantity was not measured."""

    quantity: Literal["loss", "accuracy"]
    ranks: Ints
    lengths: Ints
    values: Floats
    """[lengths, ranks], means over seeds."""


def loss_grid(cells: Iterable[CellResult]) -> Grid:
    """Mean final loss, in nats per target token, of one family of cells."""
    return _grid("loss", [(cell, cell.loss_final) for cell in cells])


def accuracy_grid(cells: Iterable[CellResult]) -> Grid:
    """Share of target tokens that greedy decoding reproduces (acc_token), of one family of cells."""
    return _grid("accuracy", [(cell, cell.acc_token) for cell in cells])


def _grid(quantity: Literal["loss", "accuracy"], cells: Sequence[tuple[CellResult, float | None]]) -> Grid:
    ranks = sorted({cell.cell.rank for cell, _ in cells})
    lengths = sorted({cell.cell.length for cell, _ in cells})
    values = np.full((len(lengths), len(ranks)), np.nan)
    measured: dict[tuple[int, int], list[float]] = {}
    for cell, value in cells:
        if cell.status == "finished" and value is not None:
            measured.setdefault((cell.cell.length, cell.cell.rank), []).append(value)
    for (length, rank), seeds in measured.items():
        values[lengths.index(length), ranks.index(rank)] = np.mean(seeds)
    return Grid(quantity, np.array(ranks, dtype=np.int64), np.array(lengths, dtype=np.int64), values)


def draw_grid(grid: Grid, axes: Axes) -> None:
    """A heatmap with printed values, blank where unknown. In a loss map, a heavy line encloses saturated cells."""
    from matplotlib import colormaps

    shades = colormaps["YlOrBr" if grid.quantity == "loss" else "GnBu"]
    top = np.nanmax(grid.values, initial=1e-9) if grid.quantity == "loss" else 1.0
    axes.pcolormesh(grid.values, cmap=shades, vmin=0.0, vmax=top * 1.15, edgecolors="white", linewidth=1.0)
    small = 6.5 if len(grid.ranks) > 8 else 8.0
    for (row, column), value in np.ndenumerate(grid.values):
        if np.isfinite(value):
            colour = "white" if _luminance(shades(value / (top * 1.15))) < 0.4 else INK
            text = f"{value:.2f}" if grid.quantity == "loss" else f"{math.floor(100 * value)}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=small)
    if grid.quantity == "loss":
        _outline(grid.values <= SATURATED, axes)
    axes.set_xticks(np.arange(len(grid.ranks)) + 0.5, [str(rank) for rank in grid.ranks])
    axes.set_yticks(np.arange(len(grid.lengths)) + 0.5, [str(length) for length in grid.lengths])
    axes.set_xlabel(LABELS["rank"])
    axes.set_ylabel(LABELS["length"])
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def grid_size(grid: Grid) -> tuple[float, float]:
    """Inches of a heatmap that is half a report wide and as tall as its lengths need."""
    return HALF[0], 0.75 + 0.34 * max(3, len(grid.lengths))


def _outline(inside: Bools, axes: Axes) -> None:
    """Draw every border between a cell inside and a cell outside."""
    for row, column in zip(*np.nonzero(inside[:, 1:] != inside[:, :-1]), strict=True):
        axes.plot([column + 1, column + 1], [row, row + 1], color=INK, linewidth=1.6, solid_capstyle="round")
    for row, column in zip(*np.nonzero(inside[1:] != inside[:-1]), strict=True):
        axes.plot([column, column + 1], [row + 1, row + 1], color=INK, linewidth=1.6, solid_capstyle="round")


def _luminance(colour: tuple[float, float, float, float]) -> float:
    """Luminance of an sRGB colour from 0 (black) to 1 (white), with a gamma of 2."""
    red, green, blue = (channel * channel for channel in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
