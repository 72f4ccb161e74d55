"""Fitting: the published numbers, known laws recovered, kinds of residuals, replicates, honest refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.paths import FIXTURES
from helpers.slow_law import (
    BOUNDED,
    GIVEN,
    LENGTHS,
    LOG,
    PAPER,
    POWER,
    RANKS,
    TRUTHS,
    growth,
    law,
    simulate,
    simulate_for,
    weighted_line,
)
from memlaw.core.errors import ConfigError, FitError
from memlaw.core.points import LawPoint
from memlaw.law import LawFit, Origin, fit_law, published, read_points

DATA = FIXTURES

forms = pytest.mark.parametrize("form", TRUTHS)


def deviations(fit: LawFit, truth: dict[str, float]) -> np.ndarray:
    """|fitted - true| of every parameter in its own standard errors; positive ones are judged on their logarithm."""
    true = [math.log(value) if name in fit.curve.positive else value for name, value in truth.items()]
    return np.abs(fit.theta - true) / np.sqrt(np.diag(fit.covariance))


def tiny(name: str) -> tuple[LawPoint, ...]:
    return read_points(DATA / name)


def with_memoryless(points: list[LawPoint]) -> list[LawPoint]:
    return [replace(point, loss_memoryless=point.loss_init - GIVEN) for point in points]


def without_final(points: list[LawPoint]) -> list[LawPoint]:
    return [replace(point, final_loss=None) for point in points]


def test_the_papers_own_fit_is_reproduced_on_its_figure():
    fit = fit_law(published.points(), "paper")
    assert (fit.status, fit.warnings) == ("ok", ())
    assert (fit.n, fit.runs) == (70, 70)
    found = [fit.C.value, fit.alpha.value, fit.beta.value, fit.b.value]
    assert found == pytest.approx([238.3, 0.660, 0.561, -0.376], rel=2e-3)
    errors = [fit.C.stderr, fit.alpha.stderr, fit.beta.stderr, fit.b.stderr]
    assert errors == pytest.approx([20.06, 0.0215, 0.0178, 0.1887], rel=2e-3)
    assert fit.r2 == pytest.approx(0.9959, abs=5e-5)
    assert fit.mape == pytest.approx(3.45, abs=0.01)
    assert fit.ranks == (1, 24)
    assert fit.lengths == (200, 10000)


def test_the_bounded_form_follows_the_figure_six_times_closer():
    fit = fit_law(published.points(), "bounded")
    assert fit.status == "ok"
    assert fit.r2 >= 0.9993
    assert fit.mape == pytest.approx(0.95, abs=0.01)
    assert 0.88 < fit.alpha.value < 0.90
    assert 0.75 < fit.beta.value < 0.77
    assert 6.0 < fit.parameters["n"].value < 6.5
    assert 0.61 < fit.b.value < 0.66
    assert fit.b.low > 0


def test_relative_residuals_weigh_the_figures_small_cells_more():
    """The rank 1 cell at 10k tokens is off by a quarter in nats' squares, and by less in those of logarithms."""
    fits = {kind: fit_law(published.points(), "paper", residuals=kind) for kind in ("absolute", "relative")}
    cell = next(p for p in published.points() if (p.rank, p.length) == (1, 10000))
    off = {kind: abs(fit.predict(1, 10000) / cell.delta_loss - 1) for kind, fit in fits.items()}
    assert off["absolute"] == pytest.approx(0.24, abs=0.01)
    assert off["relative"] < off["absolute"] / 2
    assert fits["relative"].mape < fits["absolute"].mape


def test_a_logarithm_in_disguise_is_not_called_a_power_law():
    """Least squares on these cells runs to alpha -> 0 and C -> infinity, with an R^2 that looks good."""
    fit = fit_law(tiny("tiny_points.csv"), "paper")
    assert fit.r2 > 0.98
    assert fit.status.startswith("Not identifiable: alpha's 95% interval includes 0")
    assert fit.status.endswith("or use the log form, which is that limit.")
    assert fit.alpha.low < 0 < fit.alpha.high
    assert fit.n == 15
    inside = [p for p in tiny("tiny_points.csv") if p.final_loss > 0.69]
    errors = [abs(fit.predict(p.rank, p.length) / p.delta_loss - 1) for p in inside]
    assert np.mean(errors) < 0.04
    assert max(errors) < 0.05
    assert fit_law(tiny("tiny_points.csv"), "paper", intervals="profile").status == fit.status


def test_the_log_form_can_be_trusted_where_the_power_law_diverges():
    fit = fit_law(tiny("tiny_points.csv"), "log")
    assert fit.status == "ok"
    assert fit.r2 > 0.98
    assert fit.parameters["k"].low > 0
    inside = [p for p in tiny("tiny_points.csv") if p.final_loss > 0.69]
    assert np.mean([abs(fit.predict(p.rank, p.length) / p.delta_loss - 1) for p in inside]) < 0.04


def test_an_offset_larger_than_all_that_was_learned_is_not_trusted():
    fit = fit_law(tiny("tiny_points.csv"), "bounded")
    assert fit.status.startswith("Not identifiable: the offset b")
    assert fit.r2 > 0.99


def test_reachable_targets_on_a_tiny_model_obey_the_bounded_law():
    cells = tiny("tiny_reachable_points.csv")
    bounded, paper = fit_law(cells, "bounded"), fit_law(cells, "paper")
    assert (bounded.status, bounded.n) == ("ok", 36)
    assert bounded.r2 == pytest.approx(0.995, abs=5e-4)
    assert paper.n == 19
    assert paper.r2 == pytest.approx(0.972, abs=5e-4)


@pytest.mark.parametrize("seed", range(20))
@forms
def test_fit_finds_the_law_it_was_given_within_its_own_error_bars(form, seed):
    fit = fit_law(simulate_for(form, noise=0.1, seed=seed), form)
    assert fit.status == "ok"
    assert deviations(fit, TRUTHS[form]).max() < 4
    assert fit.sigma == pytest.approx(0.1, rel=0.5)


exponents = {"alpha": st.floats(0.3, 1.6), "beta": st.floats(0.25, 1.3)}


@settings(max_examples=40, deadline=None)
@given(level=st.floats(0.5, 20), b=st.floats(-3, 3), **exponents)
def test_cells_without_noise_give_the_papers_law_back(level, b, alpha, beta):
    truth = {"C": level * 2000**beta / 6**alpha, "alpha": alpha, "beta": beta, "b": b}
    fit = fit_law(simulate(truth, with_final=False), "paper")
    assert {name: fit.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-4, abs=1e-4)
    assert fit.r2 == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(level=st.floats(0.5, 20), residuals=st.sampled_from(["absolute", "relative"]), **exponents)
def test_cells_without_noise_give_the_power_law_back(level, residuals, alpha, beta):
    truth = {"C": level * 2000**beta / 6**alpha, "alpha": alpha, "beta": beta}
    fit = fit_law(simulate(truth, with_final=False), "power", residuals=residuals)
    assert {name: fit.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(k=st.floats(0.1, 5), q=st.floats(0.1, 3), a=st.floats(-20, 20))
def test_cells_without_noise_give_the_logarithm_back(k, q, a):
    truth = {"k": k, "q": q, "a": a}
    fit = fit_law(simulate(truth, with_final=False), "log")
    assert {name: fit.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-6, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(level=st.floats(0.3, 1.2), b=st.floats(-1, 2), n=st.floats(1.2, 10), loss_init=st.floats(4, 14), **exponents)
def test_cells_without_noise_give_the_bounded_law_back(level, b, n, loss_init, alpha, beta):
    scale = level * loss_init * 2000**beta / 6**alpha
    truth = {"C": scale, "alpha": alpha, "beta": beta, "b": b * loss_init / 12, "n": n}
    fit = fit_law(simulate(truth, loss_init=loss_init), "bounded")
    assert {name: fit.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-3, abs=1e-3)


@forms
def test_the_order_of_cells_does_not_matter(form):
    cells = simulate_for(form, noise=0.1)
    forwards, backwards = fit_law(cells, form), fit_law(cells[::-1], form)
    assert backwards.theta == pytest.approx(forwards.theta, rel=1e-6)


@forms
def test_parameters_in_place_of_ranks_give_the_same_law(form):
    """N = k r: C_N = C k^-alpha, and nothing else changes."""
    cells = [replace(p, parameters=8192 * p.rank) for p in simulate_for(form, noise=0.1)]
    by_rank, by_size = fit_law(cells, form), fit_law(cells, form, axis="parameters")
    assert by_size.predict(8192 * 5.0, 3000) == pytest.approx(by_rank.predict(5.0, 3000), rel=1e-8)
    assert by_size.rank_for(3000, loss_init=12.0) == pytest.approx(
        8192 * by_rank.rank_for(3000, loss_init=12.0), rel=1e-6
    )
    assert by_size.sizes == (8192, 8192 * 32)
    assert by_size.ranks == (1, 32)
    shifted = by_rank.curve.shifted(by_rank.theta, -math.log(8192), 0.0)
    assert by_size.theta == pytest.approx(shifted, rel=1e-4)


def test_cells_of_two_placements_share_a_law_over_parameters_but_not_over_ranks():
    """dL follows the parameters; one placement has three times those of the other at every rank."""
    truth = {**PAPER, "C": 240.0 / 1000**0.66}
    cells = [
        LawPoint(rank, length, law(truth, times * 1000 * rank, length, 12.0), parameters=times * 1000 * rank)
        for times in (1, 3) for rank in RANKS for length in LENGTHS
    ]  # fmt: skip
    fit = fit_law(cells, "paper", axis="parameters")
    assert {name: fit.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-4)
    with pytest.raises(FitError, match=r"Cells of rank 1 have 1,000 and 3,000 parameters, so they are of several"):
        fit_law(cells, "paper")


def test_relative_residuals_recover_a_law_whose_scatter_is_a_share_of_it():
    fit = fit_law(simulate(POWER, noise=0.05, relative=True, with_final=False, seed=1), "power", residuals="relative")
    assert fit.status == "ok"
    assert deviations(fit, POWER).max() < 4
    assert fit.sigma == pytest.approx(0.05, rel=0.4)


def test_relative_least_squares_of_the_power_form_is_a_straight_line_in_logarithms():
    points = simulate(POWER, noise=0.1, relative=True, with_final=False, lengths=(1000, 1000 * math.e))
    fit = fit_law(points, "power", residuals="relative")
    for length in (1000, 1000 * math.e):
        row = [p for p in points if p.length == length]
        assert np.mean([math.log(p.delta_loss / fit.predict(p.rank, p.length)) for p in row]) == pytest.approx(
            0, abs=1e-6
        )
    balanced = [math.log(p.delta_loss) for p in points]
    _, slope = weighted_line([math.log(p.rank) for p in points], balanced, [1.0] * len(points))
    assert fit.alpha.value == pytest.approx(slope, rel=1e-6)


def test_relative_residuals_need_a_gain_in_every_cell():
    cells = [*simulate_for("paper"), LawPoint(3, 9000, -0.2), LawPoint(3, 9001, 0.0)]
    assert fit_law(cells, "paper", residuals="relative").status == (
        "dL is not positive in 2 of the cells (first: rank 3, length 9000), and relative residuals need its logarithm. "
        "Fit absolute residuals, or find out why training did not lower the loss of these cells."
    )


def test_relative_residuals_can_fit_a_law_that_predicts_negative_gains():
    cells = [p for p in simulate({**PAPER, "b": -1.5}, noise=0.01, with_final=False) if p.delta_loss > 0]
    assert min(p.delta_loss for p in cells) < 0.5
    fit = fit_law(cells, "paper", residuals="relative")
    assert abs(fit.b.value + 1.5) < 4 * fit.b.stderr


def scattered_replicates(seed: int) -> list[LawPoint]:
    """Cells of one length scatter ten times as much as the others."""
    random = np.random.default_rng(seed)
    return [
        LawPoint(r, n, law(PAPER, r, n, 12.0) + (0.5 if n == 500 else 0.05) * random.standard_normal(), seed=run)
        for n in LENGTHS for r in RANKS for run in range(4)
    ]  # fmt: skip


def test_replicate_weights_trust_the_cells_that_repeat_themselves():
    true = np.array([math.log(PAPER["C"]), *list(PAPER.values())[1:]])
    errors = {kind: [] for kind in ("absolute", "replicates")}
    for seed in range(20):
        for kind, found in errors.items():
            fit = fit_law(scattered_replicates(seed), "paper", residuals=kind)
            assert deviations(fit, PAPER).max() < 5
            found.append((fit.theta - true) ** 2)
    better = np.mean(errors["replicates"], axis=0) / np.mean(errors["absolute"], axis=0)
    assert better.max() < 0.8


def test_replicate_weights_are_the_shrunk_inverse_variances_of_the_means():
    """Written out: a cell's variance = (its squares + 4 pooled) / (its freedom + 4), its mean's that over its runs."""
    runs = {1: [2.0, 2.4, 2.2], 2: [3.1, 3.1], 4: [4.0]}
    points = [LawPoint(r, n, d + 0.1 * (n == 100), seed=i) for n in (100, 271) for r, ds in runs.items()
              for i, d in enumerate(ds)]  # fmt: skip
    squares = {r: sum((d - np.mean(ds)) ** 2 for d in ds) for r, ds in runs.items()}
    pooled = sum(squares.values()) / sum(len(ds) - 1 for ds in runs.values())
    weight = [len(ds) / ((squares[r] + 4 * pooled) / (len(ds) - 1 + 4)) for r, ds in runs.items()]
    _, slope = weighted_line([math.log(r) for r in runs], [float(np.mean(ds)) for ds in runs.values()], weight)
    assert fit_law(points, "log", residuals="replicates").parameters["k"].value == pytest.approx(slope, rel=1e-6)


def test_replicate_weights_need_replicates():
    assert fit_law(simulate_for("paper"), "paper", residuals="replicates").status == (
        "No cell has replicates, so their scatter cannot weight the cells. Probe with several seeds, or fit absolute "
        "residuals."
    )


def test_replicates_count_as_one_cell_and_say_so():
    fit = fit_law(simulate_for("paper", noise=0.1, runs=3), "paper")
    assert (fit.n, fit.runs, fit.freedom) == (36, 108, 32)
    assert fit.warnings == ("108 runs are replicates of 36 cells; each cell counts once, with the mean of its runs.",)
    means = [LawPoint(r, n, float(np.mean([p.delta_loss for p in simulate_for("paper", noise=0.1, runs=3)
             if (p.rank, p.length) == (r, n)]))) for n in LENGTHS for r in RANKS]  # fmt: skip
    assert fit.theta == pytest.approx(fit_law(means, "paper").theta, rel=1e-6)


def test_the_same_run_copied_adds_no_certainty():
    once = fit_law(simulate_for("paper", noise=0.1), "paper")
    thrice = fit_law(3 * simulate_for("paper", noise=0.1), "paper")
    assert thrice.theta == pytest.approx(once.theta, rel=1e-9)
    assert np.array(thrice.covariance) == pytest.approx(np.array(once.covariance), rel=1e-6)


def test_sigma_is_that_of_a_single_run_however_many_were_averaged():
    sigmas = [[fit_law(simulate_for("paper", noise=0.1, runs=runs, seed=seed), "paper").sigma for seed in range(20)]
              for runs in (1, 4)]  # fmt: skip
    assert np.mean(sigmas[0]) == pytest.approx(0.1, rel=0.08)
    assert np.mean(sigmas[1]) == pytest.approx(0.1, rel=0.08)


def test_a_cell_is_saturated_by_the_mean_of_its_runs():
    """Leaving out the better half of its runs would make the cell look worse than it is."""
    cells = [*simulate_for("paper"), LawPoint(3, 700, 11.4, 0.6, seed=0), LawPoint(3, 700, 11.2, 0.8, seed=1)]
    kept = fit_law(cells, "paper")
    assert (kept.n, kept.runs) == (37, 38)
    better = [replace(p, final_loss=0.1, delta_loss=11.9) if p.seed == 0 else p for p in cells]
    assert fit_law(better, "paper").n == 36


def status_of(points: list[LawPoint], form: str = "paper") -> str:
    fit = fit_law(points, form)
    assert fit.status != "ok"
    json.loads(fit.to_json(), parse_constant=lambda constant: pytest.fail(constant))
    return fit.status


@forms
def test_one_rank_or_one_length_tells_no_exponent(form):
    assert status_of(simulate_for(form, ranks=(4,)), form) == (
        "All cells have one rank, so they do not show how dL grows with it. Probe at least two."
    )
    assert status_of(simulate_for(form, lengths=(1000,)), form) == (
        "All cells have one length, so they do not show how dL falls with it. Probe at least two."
    )


@forms
def test_all_cells_saturated(form):
    cells = with_memoryless([LawPoint(r, length, 9.9 + r / 1000, 0.1) for r in RANKS for length in LENGTHS])
    status = status_of(cells, form)
    assert status.startswith("All cells are saturated (final loss <= 0.69 nats)")
    assert status.endswith("Probe smaller ranks or longer lengths.")
    assert not fit_law(cells, form).parameters


@pytest.mark.parametrize("form", ["paper", "power", "log"])
def test_saturated_cells_are_used_by_the_bounded_form_only(form):
    cells = simulate(BOUNDED)
    unsaturated = [cell for cell in cells if cell.final_loss > 0.69]
    fit = fit_law(cells, form)
    assert fit.n == len(unsaturated) < len(cells)
    [warning] = fit.warnings
    assert warning.startswith(f"{len(cells) - fit.n} saturated cells (final loss <= 0.69 nats) are left out")
    bounded = fit_law(cells, "bounded")
    assert (bounded.n, bounded.warnings) == (len(cells), ())


def test_the_bounded_form_needs_final_losses():
    assert "no cell has a final loss. Add the column final_loss" in status_of(
        without_final(simulate(BOUNDED)), "bounded"
    )
    mixed = fit_law(simulate(BOUNDED)[:20] + without_final(simulate(BOUNDED)[20:]), "bounded")
    assert mixed.n == 20
    assert mixed.warnings == ("16 points without a final loss are left out: the bounded form needs it.",)


def test_too_few_cells():
    three = [LawPoint(1, 100, 3.0), LawPoint(2, 100, 4.0), LawPoint(1, 200, 2.0)]
    assert status_of(three).startswith("3 usable cells are too few to estimate 4 parameters and their errors")
    assert not fit_law(three).parameters
    four = [*three, LawPoint(4, 200, 3.8)]
    fit = fit_law(four)
    assert "at least 5 are needed" in fit.status
    assert fit.alpha.stderr is None
    assert fit.alpha.low is None
    assert math.isfinite(fit.predict(2, 150))
    with pytest.raises(FitError, match=r"no error bars, so it has no prediction interval\. 4 usable cells"):
        fit.interval(np.array([2.0]), np.array([1000.0]))


@pytest.mark.parametrize(("form", "needed"), [("log", 5), ("power", 5), ("paper", 5), ("bounded", 6)])
def test_five_cells_are_the_least_and_more_than_parameters(form, needed):
    cells = simulate_for(form, noise=0.01, ranks=(1, 2), lengths=(2000, 4000, 8000))
    assert f"at least {needed} are needed" in status_of(cells[: needed - 1], form)
    assert "usable cells are too few" not in fit_law(cells[:needed], form).status


@forms
def test_loss_that_does_not_fall_with_rank(form):
    cells = with_memoryless([LawPoint(r, n, d := 2 + 1 / r + n / 1e5, 11 - d) for r in RANKS for n in LENGTHS])
    status = status_of(cells, form)
    if form in ("power", "memory"):  # which can only take alpha for 0
        assert status.startswith("Not identifiable: the 95% interval of alpha includes 0")
    else:
        assert status.startswith("dL does not grow with the rank in these cells")


@pytest.mark.parametrize(("form", "name"), [("power", "alpha"), ("log", "k")])
def test_growth_lost_in_the_scatter_is_not_trusted(form, name):
    random = np.random.default_rng(3)
    cells = [LawPoint(r, length, 5 + 0.01 * math.log(r) + random.normal()) for r in RANKS for length in LENGTHS]
    assert status_of(cells, form).startswith(f"Not identifiable: the 95% interval of {name} includes 0, so dL may not")


def test_cells_far_from_saturation_cannot_tell_how_sharply_the_curve_bends():
    cells = simulate(PAPER, loss_init=100.0, noise=0.05)
    status = status_of(cells, "bounded")
    assert status.startswith("Not identifiable: too few cells are close to saturation to tell how sharply dL bends")
    assert status.endswith("Add cells near saturation, or fit the paper's form.")


@pytest.mark.parametrize(("form", "name"), [("paper", "beta"), ("power", "beta"), ("log", "q")])
def test_length_without_effect_is_a_bound(form, name):
    noise = np.random.default_rng(0).normal(0, 0.01, len(RANKS) * len(LENGTHS))
    grid = [(r, length) for r in RANKS for length in LENGTHS]
    cells = [LawPoint(r, n, 3 * r**0.5 + e + n / 1e5) for (r, n), e in zip(grid, noise, strict=True)]
    assert f"{name} stopped at the edge of the search" in status_of(cells, form)


@forms
def test_longer_lengths_measured_only_at_higher_ranks_determine_nothing(form):
    cells = [LawPoint(r, 500 * r, d := growth(PAPER, r, 500 * r), 12.0 - d) for r in (1, 2, 3, 4, 6, 8, 12, 16)]
    assert status_of(with_memoryless(cells), form).startswith("Not identifiable: ")


def test_a_cell_that_got_worse_is_kept_and_flagged():
    cells = simulate({**BOUNDED, "b": -1.5}, noise=0.05)
    worse = sum(cell.delta_loss < 0 for cell in cells)
    assert worse
    fit = fit_law(cells, "bounded")
    assert fit.n == len(cells)
    assert abs(fit.b.value + 1.5) < 4 * fit.b.stderr
    assert fit.warnings == (
        f"Training raised the loss of {worse} of 36 cells (dL < 0). They are included; check that training converged.",
    )


def test_a_law_without_numbers_says_why_when_asked_for_one():
    fit = fit_law(simulate(PAPER, ranks=(4,)))
    with pytest.raises(FitError, match=r"This law has no alpha\. All cells have one rank"):
        _ = fit.alpha
    with pytest.raises(FitError, match="Probe at least two"):
        fit.predict(4, 1000)
    with pytest.raises(FitError, match=r"A law of the log form has no alpha; it has k, q, a\."):
        _ = fit_law(simulate_for("log"), "log").alpha


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (LawPoint(2, 100, math.nan), "rank 2, length 100 is not a measurement"),
        (LawPoint(2, 100, 1.0, math.inf), "every loss finite and under 10,000 nats"),
        (LawPoint(2, 100, 1e300), "every loss finite"),
        (LawPoint(0, 100, 1.0), "must be above 0"),
        (LawPoint(2, math.inf, 1.0), "not a measurement"),
        (LawPoint(2, 100, -3.0, 2.0), r"began at -1 nats \(final_loss \+ delta_loss\)\. A loss is never negative"),
        (LawPoint(2, 100, 0.0, 0.0), "a loss of 0 leaves nothing to learn"),
    ],
)
def test_points_that_are_not_measurements_are_refused(point, message):
    with pytest.raises(FitError, match=message):
        fit_law([*simulate_for("paper"), point])


def test_unknown_options_and_missing_points_are_refused():
    with pytest.raises(FitError, match="no cells to fit"):
        fit_law([])
    with pytest.raises(FitError, match=r"rank 2, length 100 has no number of parameters.*or fit the law in ranks"):
        fit_law([LawPoint(2, 100, 1.0)], axis="parameters")
    for option, value, known in [
        ("form", "cubic", "paper, power, log, bounded"),
        ("axis", "depth", "rank, parameters"),
        ("residuals", "huber", "absolute, relative, replicates"),
        ("intervals", "bayes", "standard, profile, bootstrap"),
    ]:
        with pytest.raises(ConfigError, match=f"cannot be fitted with '{value}'. Choose one of {known}"):
            fit_law(simulate_for("paper"), **{option: value})


def test_source_and_origin_are_kept_and_other_keywords_refused():
    origin = Origin(model="org/model")
    fit = fit_law(simulate_for("power"), "power", source="a table", origin=origin)
    assert (fit.source, fit.origin) == ("a table", origin)
    assert (fit_law(simulate_for("power")).source, fit_law(simulate_for("power")).origin) == ("the points given", None)
    with pytest.raises(TypeError, match="sorce"):
        fit_law(simulate_for("power"), "power", sorce="a table")


points = st.builds(
    LawPoint,
    st.integers(1, 64),
    st.integers(1, 10**5),
    st.floats(-2, 20) | st.sampled_from([0.0, 1.0, 1e-300, 9e3]),
    st.none() | st.floats(3, 10) | st.just(0.1),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(points, min_size=1, max_size=12), st.sampled_from(sorted(TRUTHS)),
       st.sampled_from(["absolute", "relative", "replicates"]))  # fmt: skip
def test_any_cells_give_a_law_or_a_sentence(cells, form, residuals):
    try:
        fit = fit_law(cells, form, residuals=residuals)
    except FitError as error:
        assert "began at" in str(error)  # noqa: PT017 - which of the two it is depends on the cells
        return
    json.loads(fit.to_json(), parse_constant=lambda constant: pytest.fail(constant))
    if fit.parameters:
        assert math.isfinite(fit.predict(cells[0].rank, cells[0].length, loss_init=10.0))
    else:
        assert fit.status.endswith(".")


def test_the_logarithm_needs_no_final_loss_and_follows_its_own_truth():
    fit = fit_law(simulate_for("log", noise=0.05, seed=2), "log")
    assert fit.predict(4, 1000) == pytest.approx(growth(LOG, 4, 1000), abs=0.1)
