from __future__ import annotations

import math
from xml.etree import ElementTree

from helpers.sample import PowerLaw, cell, many, points, recall
from memlaw.core.points import LawPoint
from memlaw.law import published
from memlaw.report import figures

SVG = "{http://www.w3.org/2000/svg}"


def drawn(draw, numbers, **options):
    """The figure as parsed SVG; fails if it is malformed."""
    return ElementTree.fromstring(figures.to_svg(figures.sketch(draw, numbers, **options)))


def texts(svg):
    return [element.text for element in svg.iter(f"{SVG}text")]


def held(rank, length, loss_final, certified_tokens=0, **changes):
    return cell(rank, length, loss_final, loss_memoryless=7.0, certified_tokens=certified_tokens, **changes)


def ladder(**losses):
    return figures.ladder_curve({int(rank[1:]): recall({"a": nll}).items[0] for rank, nll in losses.items()})


SHAPES = {
    "one point": (figures.draw_law, figures.rank_curve([LawPoint(1, 16, 5.0)], PowerLaw())),
    "wholly saturated": (figures.draw_law, figures.rank_curve([LawPoint(1, 16, 5.0, 0.1), LawPoint(2, 16, 5.1, 0.0)])),
    "long axis": (figures.draw_law, figures.length_curve(points(range(1, 17), range(1000, 12000, 1000)), PowerLaw())),
    "six laws": (
        figures.draw_agreement,
        [(f"law {k}", figures.agreement_curve(points(), PowerLaw())) for k in range(6)],
    ),
    "one cell": (figures.draw_grid, figures.loss_grid([cell(1, 16)])),
    "bits of one cell": (figures.draw_bits, figures.bits_curve([held(1, 16, 3.0)])),
    "no bits stored": (figures.draw_bits, figures.bits_curve([held(1, 16, 8.0), held(2, 16, 7.5)])),
    "many bits": (figures.draw_bits, figures.bits_curve([held(r, 9000, 0.0, 9000) for r in (1, 2, 4)])),
    "published bits": (figures.draw_bits, figures.bits_curve([], published.points())),
    "all recalled": (figures.draw_grid, figures.loss_grid([cell(1, 16, 0.0), cell(2, 16, 0.0)])),
    "176 cells": (
        figures.draw_grid,
        figures.accuracy_grid([cell(r, 100 * k, acc_token=r / 16) for r in range(1, 17) for k in range(1, 12)]),
    ),
    "10,000 tokens": (figures.draw_strip, figures.strip_curve(many(1, 10_000).items[0])),
    "one token": (figures.draw_strip, figures.strip_curve(recall({"a": [9.0]}).items[0])),
    "a ladder": (figures.draw_ladder, ladder(r1=[3.0, 0.6, 0.1], r8=[0.1, 0.2, 0.1])),
    "a ladder as a map": (figures.draw_ladder_grid, ladder(r1=[3.0, 0.6, 0.1], r8=[0.1, 0.2, 0.1])),
    "one rank": (figures.draw_ladder_grid, ladder(r4=[0.1])),
    "a scatter": (figures.draw_failure_scatter, figures.failure_scatter(many(50, 20))),
    "two trainings": (
        figures.draw_convergence,
        figures.convergence_curve({f"rank {r}": [(t, 5 * math.exp(-r * t / 99)) for t in range(99)] for r in (1, 4)}),
    ),
    "harm of one": (figures.draw_harm, figures.harm_scatter([0.02], [1.0])),
    "harm of several": (figures.draw_harm, figures.harm_scatter([13.0, 0.02, -0.01, 0.5], [1.0, 0.9, None, 0.1])),
    "nothing failed": (figures.draw_failures, figures.failure_histogram(recall({"a": [0.1]}))),
}
