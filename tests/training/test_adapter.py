"""The training curve that is kept with an adapter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlaw.training.adapter import CURVE_POINTS, thinned


def test_a_short_curve_is_kept_as_it_is() -> None:
    assert thinned({1: 0.1, 2: 0.2, 3: 0.4}) == (0.1, 0.2, 0.4)
    assert thinned({}) == ()


def test_a_long_curve_is_kept_as_means_over_blocks() -> None:
    assert thinned({1: 0.0, 2: 0.2, 3: 0.4, 4: 0.8, 5: 1.0}, points=3) == pytest.approx((0.1, 0.6, 1.0))


def test_steps_before_a_resumed_training_are_none() -> None:
    assert thinned({5: 0.5, 6: 0.7, 7: 0.8}, points=4) == (None, None, pytest.approx(0.6), 0.8)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=1000))
def test_a_curve_never_has_more_points_than_asked_for(shares: list[float]) -> None:
    curve = thinned(dict(enumerate(shares, start=1)))
    assert len(curve) <= min(CURVE_POINTS, len(shares))
    assert all(share is not None and 0 <= share <= 1 + 1e-12 for share in curve)
