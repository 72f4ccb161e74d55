from __future__ import annotations

import math

import numpy as np

from memlaw.report import figures


def test_lines_have_gaps_and_those_without_a_value_are_left_out():
    curve = figures.lines([1, 2], {"accuracy": [None, 50.0], "forgetting": [None, None]}, "%")
    assert list(curve.values) == ["accuracy"]
    np.testing.assert_array_equal(curve.values["accuracy"], [math.nan, 50.0])
    (axes,) = figures.sketch(figures.draw_lines, curve).axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_legend()) == ("version", "%", None)


def test_nothing_but_zeros_is_drawn_as_zero():
    (axes,) = figures.sketch(figures.draw_lines, figures.lines([1, 2], {"forgetting": [None, 0.0]}, "%")).axes
    assert axes.get_ylim() == (-1, 1)


def test_room_without_an_upper_end_fills_the_figure():
    curve = figures.room_curve([1, 2, 3], [10, 20, 30], [(50.0, 40.0, 90.0), (40.0, 30.0, None), None])
    assert (list(curve.left[:2]), curve.high[1], math.isnan(curve.low[2])) == ([50.0, 40.0], math.inf, True)
    (axes,) = figures.sketch(figures.draw_room, curve).axes
    assert axes.get_ylim()[1] > 90.0
    assert np.isfinite(axes.get_ylim()[1])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["95%", "room left", "held"]
