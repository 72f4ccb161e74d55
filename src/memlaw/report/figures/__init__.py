"""Figures in two halves: `*_curve`, `*_grid` and the like compute numbers, `draw_*` only puts numbers on axes.

    figure = sketch(draw_law, rank_curve(points, law))
    svg = to_svg(figure, name="rank")

So tests and tables can read the numbers. Figures are Matplotlib `Figure` objects: pyplot and its global state are not
used, and Matplotlib is imported only when something is drawn. No text of a user's data goes into a figure (captions can
name the record), so nothing in one can be mistaken for markup.

Colours are safe for colour-blind readers, and never the only sign: markers are filled or hollow, values are printed,
the line p = 1/2 is drawn. All figures but those of bits, harm and the ledger appear in
arXiv 2605.30260.
"""

from __future__ import annotations

from memlaw.report.figures.bits import BitsCurve, BitsSeries, bits_curve, draw_bits
from memlaw.report.figures.capacity import (
    Agreement,
    LawCurve,
    LawPredictor,
    LawSurface,
    Series,
    agreement_curve,
    draw_agreement,
    draw_law,
    draw_law_surface,
    law_surface,
    length_curve,
    rank_curve,
)
from memlaw.report.figures.cells import Grid, accuracy_grid, draw_grid, grid_size, loss_grid
from memlaw.report.figures.harm import NO_HARM, HarmScatter, draw_harm, harm_scatter
from memlaw.report.figures.ink import HALF, WIDTH, sketch, to_svg
from memlaw.report.figures.ledger import Lines, RoomCurve, draw_lines, draw_room, lines, room_curve
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
    failure_histogram,
    failure_scatter,
    ladder_curve,
    positions_size,
    strip_curve,
)

__all__ = [
    "HALF",
    "NO_HARM",
    "WIDTH",
    "Agreement",
    "BitsCurve",
    "BitsSeries",
    "Convergence",
    "FailureScatter",
    "Grid",
    "HarmScatter",
    "Ladder",
    "LawCurve",
    "LawPredictor",
    "LawSurface",
    "Lines",
    "PositionHistogram",
    "RoomCurve",
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
    "draw_harm",
    "draw_ladder",
    "draw_ladder_grid",
    "draw_law",
    "draw_law_surface",
    "draw_lines",
    "draw_room",
    "draw_strip",
    "failure_histogram",
    "failure_scatter",
    "grid_size",
    "harm_scatter",
    "ladder_curve",
    "law_surface",
    "length_curve",
    "lines",
    "loss_grid",
    "positions_size",
    "rank_curve",
    "room_curve",
    "sketch",
    "strip_curve",
    "to_svg",
]
