"""Figures, in two halves: `*_curve` and `*_grid` give numbers, `draw_*` puts numbers on axes and computes nothing.

    figure = sketch(draw_law, rank_curve(points, law))
    svg = to_svg(figure, name="rank")

Tests and tables read the numbers; the ink is thin. Figures are matplotlib's `Figure` objects: pyplot and its global
state are never touched, and matplotlib is imported only once something is drawn. No text of a user's data goes into
a figure (a caption can say which record it shows), so nothing in one can be mistaken for markup.

Colours are safe for colour-blind readers, and no meaning rests on colour alone: filled and hollow markers, printed
values, the 1/2 line. All but that of bits are figures of arXiv 2605.30260.
"""

from __future__ import annotations

from memlaw.report.figures.bits import BitsCurve, BitsSeries, bits_curve, draw_bits
from memlaw.report.figures.capacity import (
    Agreement,
    LawCurve,
    LawPredictor,
    Plane,
    Series,
    agreement_curve,
    draw_agreement,
    draw_law,
    draw_plane,
    length_curve,
    plane_surface,
    rank_curve,
)
from memlaw.report.figures.cells import Grid, accuracy_grid, draw_grid, grid_size, loss_grid
from memlaw.report.figures.ink import HALF, WIDTH, sketch, to_svg
from memlaw.report.figures.positions import (
    Convergence,
    FailureScatter,
    Ladder,
    PositionHistogram,
    Strip,
    convergence_curve,
    draw_convergence,
    draw_failure_scatter,
    draw_failures,
    draw_ladder,
    draw_ladder_grid,
    draw_strip,
    failure_curve,
    failure_scatter,
    ladder_curve,
    positions_size,
    strip_curve,
)

__all__ = [
    "HALF",
    "WIDTH",
    "Agreement",
    "BitsCurve",
    "BitsSeries",
    "Convergence",
    "FailureScatter",
    "Grid",
    "Ladder",
    "LawCurve",
    "LawPredictor",
    "Plane",
    "PositionHistogram",
    "Series",
    "Strip",
    "accuracy_grid",
    "agreement_curve",
    "bits_curve",
    "convergence_curve",
    "draw_agreement",
    "draw_bits",
    "draw_convergence",
    "draw_failure_scatter",
    "draw_failures",
    "draw_grid",
    "draw_ladder",
    "draw_ladder_grid",
    "draw_law",
    "draw_plane",
    "draw_strip",
    "failure_curve",
    "failure_scatter",
    "grid_size",
    "ladder_curve",
    "length_curve",
    "loss_grid",
    "plane_surface",
    "positions_size",
    "rank_curve",
    "sketch",
    "strip_curve",
    "to_svg",
]
