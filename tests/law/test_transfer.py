"""A law transferred to other data, other placements, other models."""

import math

import numpy as np
import pytest

from helpers.slow_law import BOUNDED, GIVEN, LOG, MEMORY, PAPER, POWER, TRUTHS, law, simulate, simulate_for
from memlaw.core.errors import FitError
from memlaw.core.points import LawPoint
from memlaw.law import LawFit, borrow, calibrate, fit_law, over_parameters

forms = pytest.mark.parametrize("form", TRUTHS)

OTHER_DATA = {**BOUNDED, "C": 250.0, "b": 1.4}


def deviations(fit: LawFit, truth: dict[str, float]) -> np.ndarray:
    true = [math.log(value) if name in fit.curve.positive else value for name, value in truth.items()]
    return np.abs(fit.theta - true) / np.sqrt(np.diag(fit.covariance))


@pytest.mark.parametrize("seed", range(20))
def test_a_few_cells_carry_the_law_to_data_with_the_same_exponents(seed):
    original = fit_law(simulate(BOUNDED, noise=0.05, seed=seed), "bounded")
    few = simulate(OTHER_DATA, loss_init=5.0, noise=0.05, seed=seed, ranks=(1, 2, 4, 8), lengths=(3000,))
    law_there = calibrate(original, few)
    assert (law_there.n, law_there.runs) == (4, 4)
    for name in ("alpha", "beta", "n"):
        assert law_there.parameters[name].value == pytest.approx(original.parameters[name].value, rel=1e-12)
    assert deviations(law_there, OTHER_DATA).max() < 4
    assert law_there.predict(6, 3000) == pytest.approx(law(OTHER_DATA, 6, 3000, 5.0), abs=0.2)
    assert law_there.loss_init == ((3000, pytest.approx(5.0)),)
    assert law_there.source.endswith("C and b refitted to 4 cells")


@pytest.mark.parametrize(
    ("form", "there", "kept"),
    [
        ("power", {**POWER, "C": 100.0}, ("alpha", "beta")),
        ("log", {**LOG, "k": 1.2, "a": 9.0}, ("q",)),
        ("paper", {**PAPER, "C": 100.0, "b": 0.5}, ("alpha", "beta")),
        ("memory", {**MEMORY, "C": 400.0}, ("alpha", "beta", "n")),
    ],
)
def test_every_form_keeps_its_exponents_and_moves_the_rest(form, there, kept):
    original = fit_law(simulate_for(form, noise=0.02), form)
    few = simulate(there, ranks=(1, 2, 4), lengths=(2000, 4000), noise=0.02, seed=1, with_final=form == "memory")
    moved = calibrate(original, few)
    for name in kept:
        assert moved.parameters[name].value == pytest.approx(original.parameters[name].value, rel=1e-12)
    assert moved.predict(3, 3000, loss_init=12.0) == pytest.approx(law(there, 3, 3000, 12.0), abs=0.2)
    names = {"power": "C", "log": "a and k", "paper": "C and b", "memory": "C"}[form]
    assert moved.source.endswith(f"{names} refitted to 6 cells")


def test_one_cell_moves_c_alone():
    original = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    moved = calibrate(original, simulate({**BOUNDED, "C": 350.0}, ranks=(4,), lengths=(2000,)))
    assert moved.b.value == pytest.approx(original.b.value, rel=1e-12)
    assert moved.predict(4, 2000) == pytest.approx(law({**BOUNDED, "C": 350.0}, 4, 2000, 12.0), abs=1e-4)
    assert moved.C.stderr > 0
    assert "C refitted to 1 cells" in moved.source


def test_one_cell_moves_the_level_of_a_logarithm():
    original = fit_law(simulate_for("log", noise=0.05), "log")
    moved = calibrate(original, [LawPoint(4, 2000, 3.0)])
    assert moved.parameters["k"].value == pytest.approx(original.parameters["k"].value, rel=1e-12)
    assert moved.predict(4, 2000) == pytest.approx(3.0)


def test_replicates_of_one_cell_move_c_alone():
    original = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    moved = calibrate(original, simulate(OTHER_DATA, ranks=(4,), lengths=(2000,), runs=4))
    assert moved.b.value == pytest.approx(original.b.value, rel=1e-12)
    assert (moved.n, moved.runs) == (1, 4)


def test_the_papers_form_is_calibrated_on_unsaturated_cells():
    original = fit_law(simulate(PAPER, noise=0.05, with_final=False))
    there = {**PAPER, "C": 100.0, "b": 0.5}
    cells = [p for p in simulate(there, loss_init=6.0, lengths=(2000,)) if p.final_loss > 0]
    moved = calibrate(original, cells)
    assert moved.n == sum(cell.final_loss > 0.69 for cell in cells)
    assert moved.predict(3, 2000) == pytest.approx(law(there, 3, 2000, 6.0), abs=0.05)


def test_calibrated_uncertainty_is_never_smaller_than_the_new_cells_allow():
    original = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    few = calibrate(original, simulate(OTHER_DATA, loss_init=5.0, ranks=(1, 4), lengths=(1000, 4000)))
    assert few.sigma >= original.sigma
    assert np.linalg.eigvalsh(np.array(few.covariance)).min() > -1e-12


def test_new_cells_that_scatter_more_say_so():
    original = fit_law(simulate(BOUNDED, noise=0.02), "bounded")
    few = simulate(BOUNDED, noise=0.5, seed=1, ranks=(1, 2, 4), lengths=(2000, 4000))
    moved = calibrate(original, few)
    assert moved.sigma > 5 * original.sigma
    assert moved.freedom == 4
    low, high = moved.interval(np.array([2.0]), np.array([3000.0]))
    assert high - low > 2 * 2.1 * moved.sigma


def test_calibration_needs_an_informative_cell():
    original = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    with pytest.raises(FitError, match=r"No cell to calibrate with\. All cells are saturated"):
        calibrate(original, [LawPoint(64, 500, 4.9, 0.1)])
    with pytest.raises(FitError, match=r"No cell to calibrate with\. The bounded form needs L_init"):
        calibrate(original, [LawPoint(64, 500, 4.9)])
    with pytest.raises(FitError, match=r"No cell to calibrate with\. The memory form needs L_init'"):
        calibrate(fit_law(simulate_for("memory", noise=0.05), "memory"), [LawPoint(64, 500, 4.9, 2.0)])
    power = fit_law(simulate_for("power", noise=0.05), "power")
    with pytest.raises(FitError, match="cannot calibrate the law: training did not lower their loss"):
        calibrate(power, [LawPoint(4, 2000, -3.0)])
    relative = fit_law(simulate_for("power", noise=0.05), "power", residuals="relative")
    with pytest.raises(FitError, match=r"These cells cannot calibrate the law\. dL is not positive in 1 of the cells"):
        calibrate(relative, [LawPoint(4, 2000, -3.0)])


@forms
def test_a_borrowed_law_keeps_its_values_and_is_right_about_the_size_within_the_factor(form):
    own = fit_law(simulate_for(form, noise=0.01), form)
    lent = borrow(own, factor=4.0, caveat="Not this model's.")
    assert lent.caveat == "Not this model's."
    assert [e.value for e in lent.parameters.values()] == [e.value for e in own.parameters.values()]
    random = np.random.default_rng(0)
    laws = random.multivariate_normal(lent.theta, np.array(lent.covariance), size=4000)
    sizes = lent.curve.size_for(laws, 3000, 8.0, 11.0) / float(lent.curve.size_for(lent.theta, 3000, 8.0, 11.0))
    assert np.mean((sizes > 1 / 4) & (sizes < 4)) == pytest.approx(0.95, abs=0.015)


def test_a_law_without_error_bars_cannot_be_borrowed():
    with pytest.raises(FitError, match="without error bars cannot be borrowed"):
        borrow(fit_law(simulate(PAPER, ranks=(4,))), factor=4.0, caveat="")


def test_a_borrowed_law_stays_borrowed_in_its_exponents():
    lent = borrow(fit_law(simulate(BOUNDED, noise=0.05), "bounded", source="elsewhere"), factor=4.0, caveat="Not ours.")
    own = calibrate(lent, simulate(OTHER_DATA, loss_init=5.0, ranks=(1, 2, 4), lengths=(3000,)))
    assert own.caveat == "Exponents borrowed from elsewhere; only C and b come from this model's own cells."
    assert own.C.stderr / own.C.value < lent.C.stderr / lent.C.value


@forms
def test_over_parameters_a_law_is_the_one_that_would_have_been_fitted_there(form):
    cells = simulate_for(form, noise=0.1)
    by_rank = fit_law(cells, form)
    there = [
        LawPoint(p.rank, p.length, p.delta_loss, p.final_loss, 8192 * p.rank, p.seed, p.loss_memoryless) for p in cells
    ]
    fitted, moved = fit_law(there, form, axis="parameters"), over_parameters(by_rank, 8192)
    assert (moved.axis, moved.sizes, moved.ranks) == ("parameters", fitted.sizes, fitted.ranks)
    assert moved.theta == pytest.approx(fitted.theta, rel=1e-4)
    at = np.array([8192.0 * 3]), np.array([900.0])
    assert np.array(moved.interval(*at)) == pytest.approx(np.array(fitted.interval(*at)), rel=1e-5)
    assert np.array(moved.correlation) == pytest.approx(np.array(fitted.correlation), abs=1e-4)
    assert over_parameters(moved, 8192) is moved


def test_without_error_bars_it_has_none_over_parameters_either():
    exact = fit_law(simulate_for("paper", ranks=(1, 4), lengths=(500, 4000)))
    moved = over_parameters(exact, 100)
    assert moved.covariance is None
    assert moved.predict(300, 900) == pytest.approx(exact.predict(3, 900))


def test_given_nats_need_no_adapter():
    """What takes no memory is there at size 0, in the memory form."""
    fit = fit_law(simulate_for("memory"), "memory")
    assert fit.predict(1e-9, 3000) == pytest.approx(GIVEN, abs=1e-3)
    assert fit.rank_for(3000, loss_final=12.0 - GIVEN) == 0
