"""The sizes a set may need: draws around the law's own answer, as wide as the uncertainty."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from helpers.slow_law import BOUNDED, PAPER, POWER, simulate, simulate_for
from memlaw.core.errors import FitError
from memlaw.law import LawFit, fit_law
from memlaw.planning import DRIFT, CellRecall, Target, recall_curve
from memlaw.planning.planner import OTHER_KIND_FACTOR
from memlaw.planning.sizes import TAILS, Sizes

EXACT = fit_law(simulate(BOUNDED), "bounded")

NOISY = fit_law(simulate(BOUNDED, noise=0.1), "bounded")

LOW = Target(None, 0.05)


def sizes(law: LawFit = NOISY, **changes: Any) -> Sizes:
    values = {"target": LOW, "records": 10, "tokens": 3000, "loss_init": 12.0} | changes
    return Sizes(law, values.pop("recall", recall_curve()), **values)


def width(of: Sizes, tokens: float | None = None) -> float:
    """ln of the ratio of the ends of the 95% interval."""
    low, high = np.quantile(of.draws(of.tokens if tokens is None else tokens), TAILS)
    return math.log(high / low)


@pytest.mark.parametrize("target", [LOW, Target(), Target(0.9)], ids=str)
@pytest.mark.parametrize("form", ["paper", "power", "log", "bounded", "memory"])
def test_half_of_the_draws_lie_on_either_side_of_the_laws_own_answer(form: str, target: Target) -> None:
    law = fit_law(simulate_for(form, noise=0.02), form)
    of = sizes(law, target=target, tokens=2000, records=200)
    share = float(np.mean(of.draws(2000) <= of.point(2000)))
    assert share == pytest.approx(0.5, abs=0.06)


def test_draws_are_the_same_every_time() -> None:
    assert np.array_equal(sizes(target=Target()).draws(2000), sizes(target=Target()).draws(2000))


def test_where_all_is_known_every_draw_is_the_answer() -> None:
    for tokens in (600, 3000, 8000):
        of = sizes(EXACT)
        assert of.draws(tokens) == pytest.approx(of.point(tokens), rel=1e-4)


@given(loss=st.floats(0.02, 3), tokens=st.integers(500, 8000))
@settings(max_examples=30, deadline=None)
def test_a_lower_loss_never_needs_a_smaller_size(loss: float, tokens: int) -> None:
    of = sizes()
    assert np.all(of.draws(tokens, loss) >= of.draws(tokens, 1.5 * loss))
    assert of.point(tokens, loss) >= of.point(tokens, 1.5 * loss)


def test_a_loss_that_is_there_from_the_start_needs_nothing() -> None:
    of = sizes(fit_law(simulate(POWER, noise=0.05, with_final=False), "power"), loss_init=0.04)
    assert of.point(3000) == 0
    assert np.mean(of.draws(3000) == 0) > 0.4
    assert of.draws(3000).max() < 0.05


def test_a_law_without_error_bars_draws_nothing() -> None:
    law = fit_law(simulate(PAPER, ranks=(1, 8), lengths=(500, 4000), with_final=False), "paper")
    assert law.covariance is None
    with pytest.raises((FitError, TypeError, ValueError)):
        sizes(law).draws(3000)


def test_noisier_cells_do() -> None:
    quiet, loud = (sizes(fit_law(simulate(BOUNDED, noise=noise), "bounded")) for noise in (0.02, 0.3))
    assert width(loud) > 2 * width(quiet)


def test_lengths_beyond_the_fitted_ones_do_by_the_drift_and_those_between_do_not() -> None:
    for tokens in (500, 2000, 8000):
        assert width(sizes(EXACT), tokens) < 0.01
    for factor in (2, 8, 32):
        expected = 2 * 1.96 * DRIFT * math.log(factor)
        assert width(sizes(EXACT), 8000 * factor) == pytest.approx(expected, rel=0.06)
        assert width(sizes(EXACT), 500 / factor) == pytest.approx(expected, rel=0.06)


def test_another_kind_of_data_does_by_its_factor() -> None:
    of = sizes(EXACT, factor=OTHER_KIND_FACTOR)
    low, high = np.quantile(of.draws(3000), TAILS)
    assert low == pytest.approx(of.point(3000) / OTHER_KIND_FACTOR, rel=0.1)
    assert high == pytest.approx(of.point(3000) * OTHER_KIND_FACTOR, rel=0.1)


def test_a_loss_to_learn_does_and_cells_that_show_it_take_that_back() -> None:
    asked, unknown = sizes(EXACT), sizes(EXACT, target=Target())
    seen = [CellRecall(loss, exact, 20, 200) for loss, exact in ((0.8, 1), (0.5, 8), (0.3, 17), (0.2, 20))]
    learned = replace(unknown, recall=recall_curve(5 * seen))
    assert width(asked) < 0.01 < width(learned) < 0.8 * width(unknown)


def test_chance_counts_for_one_error_more_than_for_many() -> None:
    """Of 1,000 records: when the first of them fails is luck, when the hundredth does hardly is."""
    certain = recall_curve([CellRecall(loss, round(400 * math.exp(-10 * 0.01 * (loss / 0.4) ** 4)), 400, 4000)
                            for loss in np.geomspace(0.2, 1.2, 200)])  # fmt: skip
    one, many = (sizes(EXACT, recall=certain, records=1000, tokens=8000, target=Target(share)) for share in (1.0, 0.9))
    assert width(many) < 0.3 * width(one)


@pytest.mark.parametrize("form", ["paper", "power", "log", "memory"])
def test_95_percent_of_intervals_contain_the_size_at_which_one_training_gets_there(form: str) -> None:
    """One that falls short of the law, or does better, by each of 40 errors that are equally likely."""
    exact, inside = fit_law(simulate_for(form), form), []
    for seed, missing in enumerate(0.05 * ndtri((np.arange(40) + 0.5) / 40)):
        law = fit_law(simulate_for(form, noise=0.05, seed=seed), form)
        low, high = np.quantile(sizes(law, tokens=2000, target=Target(None, 5.0)).draws(2000), TAILS)
        inside.append(low <= exact.rank_for(2000, loss_final=5.0 - missing, loss_init=12.0) <= high)
    assert np.mean(inside) >= 0.9
