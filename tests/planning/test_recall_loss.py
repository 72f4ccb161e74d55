"""The loss that recall needs: Bayes' rule, equal to brute force, and calibrated where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.slow_planning import first_errors, mean_curve
from memlaw.planning import CellRecall, recall_curve, recall_loss

LOSSES = st.floats(0.01, 3)


@st.composite
def cells(draw: st.DrawFn, most: int = 60) -> CellRecall:
    records = draw(st.integers(1, most))
    return CellRecall(draw(LOSSES), draw(st.integers(0, records)), records, records * draw(st.integers(1, 20)))


def test_without_cells_it_is_what_is_known_beforehand() -> None:
    curve = recall_curve()
    assert curve.cells == 0
    assert curve.mean == pytest.approx((recall_loss._LOG_H, recall_loss._LOG_C), abs=1e-9)
    assert curve.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "seen",
    [
        [CellRecall(0.4, 0, 1, 100)],
        [CellRecall(0.3, 12, 12, 120)],
        [CellRecall(0.7, 2, 12, 120), CellRecall(0.2, 11, 12, 120), CellRecall(0.05, 60, 60, 660)],
        [CellRecall(1.5, 0, 30, 330), CellRecall(0.1, 1, 1, 64)],
    ],
)
def test_it_is_bayes_rule_node_by_node(seen: list[CellRecall]) -> None:
    assert recall_curve(seen).mean == pytest.approx(mean_curve(seen), rel=1e-9)


@given(rate=st.floats(1e-6, 1), log_h=st.floats(-9, -2), log_c=st.floats(0.5, 2.5))
@settings(deadline=None)
def test_the_loss_for_a_rate_has_that_rate(rate: float, log_h: float, log_c: float) -> None:
    loss = float(recall_curve().loss_for(rate, np.array([log_h, log_c])))
    assert first_errors(log_h, log_c, loss) == pytest.approx(rate, rel=1e-9)


@given(seen=st.lists(cells(), max_size=4), rates=st.tuples(st.floats(1e-7, 1), st.floats(1e-7, 1)))
@settings(max_examples=30, deadline=None)
def test_fewer_errors_never_allow_a_larger_loss(seen: list[CellRecall], rates: tuple[float, float]) -> None:
    curve = recall_curve(seen)
    fewer, more = (float(curve.loss_for(rate)) for rate in sorted(rates))
    assert 0 < fewer <= more


@given(seen=st.lists(cells(), max_size=4), cell=cells(most=8))
@settings(max_examples=30, deadline=None)
def test_the_more_records_come_back_the_fewer_errors_are_believed_of_that_loss(
    seen: list[CellRecall], cell: CellRecall
) -> None:
    believed = []
    for exact in range(cell.records + 1):
        curve = recall_curve([*seen, CellRecall(cell.loss_final, exact, cell.records, cell.tokens)])
        log_h, log_c = curve.nodes.T
        believed.append(float(curve.weights @ (log_h + np.exp(log_c) * math.log(cell.loss_final / 0.4))))
    assert np.all(np.diff(believed) <= 1e-9)


@pytest.mark.parametrize("loss", [0.0, 1e-12, 50.0, 1e6])
def test_the_most_extreme_cells_leave_a_curve(loss: float) -> None:
    for exact in (0, 7):
        curve = recall_curve([CellRecall(loss, exact, 7, 70)])
        assert np.all(np.isfinite(curve.weights))
        assert curve.weights.sum() == pytest.approx(1)


def test_cells_narrow_it() -> None:
    def spread(seen: list[CellRecall]) -> float:
        return float(np.std(np.log(drawn_losses(seen, 1 / 500))))

    informative = [CellRecall(loss, exact, 20, 200) for loss, exact in ((0.8, 1), (0.5, 8), (0.3, 17), (0.2, 20))]
    assert spread(informative) < 0.6 * spread([])
    assert spread(informative * 5) < 0.6 * spread(informative)


def drawn_losses(seen: list[CellRecall], rate: float, seed: int = 0) -> np.ndarray:
    curve = recall_curve(seen)
    return curve.loss_for(rate, curve.draws(np.random.default_rng(seed), 2000))


def test_95_percent_of_intervals_contain_the_loss_that_a_longer_set_truly_needs() -> None:
    """Truths drawn from what is believed beforehand, each shown through ten cells of 20 records."""
    inside, rate = [], math.log(2) / 2000
    for seed in range(150):
        random = np.random.default_rng(seed)
        truth = np.array([recall_loss._LOG_H, recall_loss._LOG_C])
        truth = truth + (recall_loss._LOG_H_DEVIATION, recall_loss._LOG_C_DEVIATION) * random.standard_normal(2)
        seen = []
        for loss in np.geomspace(0.05, 2, 10):
            back = math.exp(-min(10 * first_errors(*truth, float(loss)), 700))
            seen.append(CellRecall(float(loss), int(random.binomial(20, back)), 20, 200))
        low, high = np.quantile(drawn_losses(seen, rate, seed), (0.025, 0.975))
        inside.append(low <= float(recall_curve().loss_for(rate, truth)) <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_draws_are_those_of_their_generator() -> None:
    curve = recall_curve([CellRecall(0.4, 3, 5, 50)])
    one, again, other = (curve.draws(np.random.default_rng(seed), 50) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
