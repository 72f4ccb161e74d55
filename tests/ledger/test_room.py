"""Tests of ledger/room.py: a law's capacity, truncated to what was seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlaw.ledger.room import HARM_EXPONENT, CapacityBelief, Lognormal, harm_limit
from memlaw.planning.result import Capacity

LAW = Capacity(rank=8, tokens=1000.0, low=500.0, high=2000.0, saturates=None)

tokens = st.floats(1.0, 1e5)


def sampled(belief: CapacityBelief, count: int = 400_000) -> np.ndarray:
    """Capacities drawn from the law, those kept that agree with what was seen."""
    random = np.random.default_rng(0)
    draw = np.exp(np.min([random.normal(one.log_median, one.sigma, count) for one in belief.limits], axis=0))
    return draw[(draw >= belief.fitted) & (draw <= belief.refused)]


def test_without_anything_seen_the_room_is_the_law_s() -> None:
    room = CapacityBelief.from_law(LAW).room(held=200.0)
    assert (room.tokens, room.low, room.high) == pytest.approx((800.0, 300.0, 1800.0))


@pytest.mark.parametrize("harm", [None, Lognormal(math.log(1100.0), 0.3)])
@pytest.mark.parametrize(("fitted", "refused"), [((), ()), ((900.0,), ()), ((700.0, 900.0), (1500.0,)), ((), (800.0,))])
def test_quantiles_and_chances_are_those_of_draws(
    fitted: tuple[float, ...], refused: tuple[float, ...], harm: Lognormal | None
) -> None:
    belief = CapacityBelief.from_law(LAW).seen(fitted, refused)
    belief = belief if harm is None else belief.below(harm)
    draws = sampled(belief)
    for share in (0.025, 0.3, 0.5, 0.975):
        assert belief.quantile(share) == pytest.approx(np.quantile(draws, share), rel=0.02)
    for wanted in (600.0, 1000.0, 1400.0):
        assert belief.chance(wanted) == pytest.approx((draws >= wanted).mean(), abs=0.01)


@given(fitted=tokens, more=tokens, refused=tokens)
def test_what_was_seen_bounds_the_belief(fitted: float, more: float, refused: float) -> None:
    belief = CapacityBelief.from_law(LAW).seen([fitted], [refused])
    assert belief.quantile(0.025) >= fitted
    assert belief.quantile(0.025) <= belief.quantile(0.5) <= belief.quantile(0.975)
    if refused > fitted:
        assert belief.quantile(0.975) <= refused
    room, later = belief.room(fitted), belief.seen([fitted + more]).room(fitted)
    assert all(math.isfinite(one) and one >= 0 for one in (room.tokens, room.low, room.high or 0.0))
    assert later.low >= min(more, room.low) * (1 - 1e-9)  # more seen to fit is never less room


def test_a_failure_below_what_fitted_once_says_nothing_of_the_capacity() -> None:
    assert CapacityBelief.from_law(LAW).seen([900.0], [800.0]).refused == math.inf


def test_the_law_may_be_far_too_low() -> None:
    room = CapacityBelief.from_law(LAW).seen([1e6]).room(1e6)
    assert 0 <= room.low <= room.tokens <= (room.high or 0.0) < 1e6


def test_harm_reaches_its_bound_where_its_power_law_does() -> None:
    limit = harm_limit(200.0, harm=0.02, most=0.1)
    assert 0.02 * (math.exp(limit.log_median) / 200.0) ** HARM_EXPONENT == pytest.approx(0.1)
    assert harm_limit(200.0, 0.02, 0.1, ranks=2.0).log_median > limit.log_median
    assert harm_limit(200.0, 0.02, 0.1, ranks=2.0).sigma > limit.sigma > harm_limit(200.0, 0.09, 0.1).sigma


@pytest.mark.parametrize("harm", [0.0, -0.01, 1e-9])
def test_no_harm_that_can_be_told_from_noise_leaves_much_room(harm: float) -> None:
    assert math.exp(harm_limit(200.0, harm, most=0.1).log_median) > 1000.0


@given(tokens=tokens, harm=st.floats(-0.1, 0.2))
def test_one_more_limit_never_makes_the_capacity_larger(tokens: float, harm: float) -> None:
    law = CapacityBelief.from_law(LAW)
    both = law.below(harm_limit(tokens, harm, 0.1))
    for share in (0.025, 0.5, 0.975):
        assert both.quantile(share) <= law.quantile(share) * (1 + 1e-9)
