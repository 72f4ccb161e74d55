from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.drawings import drawn, texts
from memlaw.report import figures

POINT = st.tuples(st.floats(-1, 10, width=16), st.integers(0, 4).map(lambda quarters: quarters / 4))


@given(st.lists(POINT, min_size=1, max_size=8))
def test_the_front_holds_those_that_no_other_beats(points):
    harm, recalled = zip(*points, strict=True)
    scatter = figures.harm_scatter(harm, recalled)
    for (x, y), best in zip(points, scatter.best, strict=True):
        beaten = any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)
        assert best == (not beaten)
    assert scatter.best.any()


def test_an_adapter_whose_recall_is_unknown_is_no_point():
    scatter = figures.harm_scatter([0.1, 0.2], [None, 0.5])
    assert scatter.best.tolist() == [False, True]
    assert np.isnan(scatter.recalled[0])


def test_none_is_no_front():
    assert figures.harm_scatter([], []).best.tolist() == []


@pytest.mark.parametrize("harm", [[2.0, 0.02], [-0.01, 0.0]])
def test_points_bear_the_numbers_of_the_table(harm):
    shown = texts(drawn(figures.draw_harm, figures.harm_scatter(harm, [1.0, 0.5])))
    assert {"1", "2", "facts recalled (%)", "harm: loss difference on neutral text (nats a token)"} <= set(shown)
