"""Intervals cover the truth as often as they claim: standard errors, profiles, bootstrap, predictions, correlation."""

import math

import numpy as np
import pytest

from helpers.slow_law import PAPER, TRUTHS, law, simulate, simulate_for
from memlaw.core.errors import FitError
from memlaw.core.points import LawPoint
from memlaw.law import LawFit, fit_law, published
from memlaw.law.intervals import profiled
from memlaw.law.points import cells_of, loss_table, points_for_form
from memlaw.law.residuals import SCALES
from memlaw.law.search import problem_of, refine

forms = pytest.mark.parametrize("form", TRUTHS)


def contains(fit: LawFit, name: str, true: float) -> bool:
    estimate = fit.parameters[name]
    return (estimate.low is None or estimate.low <= true) and (estimate.high is None or true <= estimate.high)


@pytest.mark.parametrize(
    ("intervals", "sets"), [("standard", 100), pytest.param("profile", 100, marks=pytest.mark.slow)]
)
@forms
def test_95_percent_intervals_contain_the_truth_about_that_often(form, intervals, sets):
    """benchmarks/law_coverage.py does so with 500 data sets."""
    fits = [fit_law(simulate_for(form, noise=0.1, seed=1000 + seed), form, intervals=intervals) for seed in range(sets)]
    for name, true in TRUTHS[form].items():
        covered = np.mean([contains(fit, name, true) for fit in fits])
        assert 0.90 <= covered <= 0.99, (name, covered)


@pytest.mark.slow
def test_bootstrap_intervals_contain_the_truth_about_that_often():
    points = [simulate_for("power", noise=0.14, runs=2, seed=seed, ranks=(1, 2, 4, 8)) for seed in range(25)]
    fits = [fit_law(cells, "power", intervals="bootstrap") for cells in points]
    covered = [contains(fit, name, true) for fit in fits for name, true in TRUTHS["power"].items()]
    assert np.mean(covered) >= 0.88


def test_a_bootstrap_is_the_same_every_time_and_moves_replicates_together():
    """All scatter is between cells: three copies of each run must not make the intervals narrower."""
    cells = simulate_for("power", noise=0.1, ranks=(1, 2, 4, 8))
    once, again = (fit_law(cells, "power", intervals="bootstrap") for _ in range(2))
    assert once == again
    assert once.intervals == "bootstrap"
    copied = fit_law(3 * cells, "power", intervals="bootstrap")
    width = once.alpha.high - once.alpha.low
    assert copied.alpha.high - copied.alpha.low == pytest.approx(width, rel=0.1)
    assert width == pytest.approx(4.2 * fit_law(cells, "power").alpha.stderr, rel=0.35)


def test_a_bootstrap_also_draws_the_seeds_within_a_cell():
    """The means follow the law exactly: all the doubt there is comes from drawing runs again."""
    points = [
        LawPoint(r, n, law(PAPER, r, n, 12.0) + error, seed=run)
        for r in (1, 2, 4, 8) for n in (500, 1000, 2000) for run, error in enumerate((-0.2, 0.0, 0.2))
    ]  # fmt: skip
    fit = fit_law(points, "power", intervals="bootstrap")
    assert fit.alpha.high - fit.alpha.low > 0.01


def test_a_bootstrap_of_too_few_different_cells_knows_nothing():
    cells = [*simulate_for("paper", noise=0.1, ranks=(1, 4), lengths=(500, 4000)), LawPoint(2, 1000, 7.5)]
    fit = fit_law(cells, "paper", intervals="bootstrap")
    assert (fit.n, fit.freedom) == (5, 1)
    assert (fit.alpha.low, fit.alpha.high) == (None, None)
    assert fit.status != "ok"


@forms
def test_a_profile_ends_where_the_squares_have_risen_as_far_as_t_allows(form):
    """The definition, with the other parameters searched anew at each end."""
    points = simulate_for(form, noise=0.1, seed=4)
    fit = fit_law(points, form, intervals="profile")
    seen = points_for_form(form, points)
    cells = cells_of(seen, "rank", loss_table(seen))
    problem = problem_of(cells, fit.curve, SCALES["absolute"])
    least = float((problem.residual(fit.theta) ** 2).sum())
    for index, name in enumerate(fit.parameters):
        for end in (fit.parameters[name].low, fit.parameters[name].high):
            held = fit.theta.copy()
            held[index] = math.log(end) if name in fit.curve.positive else end
            squares, _ = refine(problem, held, [other for other in range(len(held)) if other != index])
            t = {32: 2.0369, 33: 2.0345, 31: 2.0395}[fit.freedom]
            assert squares / least == pytest.approx(1 + t**2 / fit.freedom, rel=5e-3)


def test_profiles_of_a_form_that_is_linear_in_its_parameters_are_the_standard_intervals():
    """k and a of the log form are linear where q is known, and the scatter is small against both."""
    cells = simulate_for("log", noise=0.01)
    standard, profile = (fit_law(cells, "log", intervals=kind) for kind in ("standard", "profile"))
    for name in ("k", "q", "a"):
        ours, theirs = profile.parameters[name], standard.parameters[name]
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=2e-3)


def test_a_profile_that_never_rises_enough_is_open():
    """Far from the ceiling any sharper bend fits as well."""
    fit = fit_law(simulate(PAPER, loss_init=40.0, noise=0.1), "bounded", intervals="profile")
    assert fit.parameters["n"].high is None
    assert fit.parameters["n"].low is not None
    assert fit.status.startswith("Not identifiable: too few cells are close to saturation")


def test_cells_without_scatter_have_profiles_of_no_width():
    theta = np.array([math.log(240.0), 0.66, 0.56])
    points = simulate_for("power")
    problem = problem_of(cells_of(points, "rank", ()), fit_law(points, "power").curve, SCALES["absolute"])
    ends = profiled(problem, theta, np.zeros((3, 3)), 33)
    assert ends.low.tolist() == ends.high.tolist() == theta.tolist()


@forms
def test_90_percent_of_new_runs_fall_into_their_prediction_interval(form):
    hits = []
    for seed in range(30):
        fit = fit_law(simulate_for(form, noise=0.1, seed=seed), form)
        new = simulate_for(form, noise=0.1, seed=5000 + seed)
        at = np.array([(p.rank, p.length, p.delta_loss) for p in new if p.final_loss is None or p.final_loss > 0.69]).T
        low, high = fit.interval(at[0], at[1])
        hits.extend((low <= at[2]) & (at[2] <= high))
    assert np.mean(hits) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("residuals", ["absolute", "replicates"])
def test_an_interval_is_for_one_new_run_also_where_cells_were_repeated(residuals):
    hits = []
    for seed in range(40):
        fit = fit_law(simulate_for("paper", noise=0.1, seed=seed, runs=4, ranks=(1, 2, 4, 8)), residuals=residuals)
        new = simulate_for("paper", noise=0.1, seed=5000 + seed)
        at = np.array([(p.rank, p.length, p.delta_loss) for p in new]).T
        low, high = fit.interval(at[0], at[1])
        hits.extend((low <= at[2]) & (at[2] <= high))
    assert np.mean(hits) == pytest.approx(0.9, abs=0.04)


def test_relative_residuals_give_proportional_intervals_above_zero():
    hits = []
    for seed in range(30):
        cells = simulate(TRUTHS["power"], noise=0.1, relative=True, with_final=False, seed=seed)
        fit = fit_law(cells, "power", residuals="relative")
        new = simulate(TRUTHS["power"], noise=0.1, relative=True, with_final=False, seed=5000 + seed)
        at = np.array([(p.rank, p.length, p.delta_loss) for p in new]).T
        low, high = fit.interval(at[0], at[1])
        assert low.min() > 0
        assert high / fit.predict(at[0], at[1]) == pytest.approx(fit.predict(at[0], at[1]) / low)
        hits.extend((low <= at[2]) & (at[2] <= high))
    assert np.mean(hits) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("residuals", ["absolute", "relative"])
def test_no_interval_of_the_bounded_form_goes_beyond_the_ceiling(residuals):
    fit = fit_law(published.points(), "bounded", residuals=residuals)
    size, length = np.array([1.0, 24.0, 500.0, 1e6]), np.array([1e4, 1e3, 1e3, 10.0])
    low, high = fit.interval(size, length, level=0.99)
    value = fit.predict(size, length)
    assert np.all(low < value)
    assert np.all(value <= high)
    assert np.all(high <= fit.loss_init_at(length))


def test_a_higher_level_is_a_wider_interval_and_without_error_bars_there_is_none():
    fit = fit_law(simulate_for("paper", noise=0.1))
    at = np.array([3.0]), np.array([900.0])
    narrow, wide = fit.interval(*at, level=0.5), fit.interval(*at, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    exact = fit_law(simulate_for("paper", ranks=(1, 4), lengths=(500, 4000)))
    with pytest.raises(FitError, match="This law has no error bars, so it has no prediction interval"):
        exact.interval(*at)


def test_correlation_is_that_of_the_covariance():
    fit = fit_law(published.points(), "bounded")
    found = np.array(fit.correlation)
    assert np.diag(found) == pytest.approx(np.ones(5))
    assert found == pytest.approx(found.T)
    assert found[1, 2] == pytest.approx(fit.covariance[1][2] / math.sqrt(fit.covariance[1][1] * fit.covariance[2][2]))
    assert found[0, 1] > 0.95
    assert fit_law(simulate_for("paper", ranks=(1, 4), lengths=(500, 4000))).correlation is None
