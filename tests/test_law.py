"""The law: the published numbers, known laws found again, honest refusals, and the law turned round."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_law import BOUNDED, LENGTHS, PAPER, RANKS, aicc, law, simulate

from memlaw import published
from memlaw.errors import ConfigError, FitError
from memlaw.law import (
    LawFit,
    borrow,
    calibrate,
    compare,
    fit_law,
    holdout,
    points_from_results,
    points_from_text,
    read_points,
)
from memlaw.law.curve import curve, size_for, soft_bound, unbound
from memlaw.records import LN2, Cell, CellResult, LawPoint, TrainConfig

DATA = Path(__file__).parent / "data"
SEEDS = range(20)


def deviations(fit: LawFit, truth: dict[str, float]) -> np.ndarray:
    """|fitted - true| of every parameter in its own standard errors; C and n are judged on their logarithm."""
    true = [math.log(value) if name in ("C", "n") else value for name, value in truth.items()]
    return np.abs(fit.theta - true) / np.sqrt(np.diag(fit.covariance))


def tiny(name: str) -> tuple[LawPoint, ...]:
    return read_points(DATA / name)


def without_final(points: list[LawPoint]) -> list[LawPoint]:
    return [replace(point, final_loss=None) for point in points]


# --- what the paper and the tiny model measured ----------------------------------------------------------------------


def test_the_papers_own_fit_is_found_again_on_its_figure():
    fit = fit_law(published.points(), "paper")
    assert fit.status == "ok"
    assert fit.n == 70
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


@pytest.mark.parametrize(
    ("spec", "bounded", "paper"), [("length=MAX", 1.3, 6.0), ("length>=7000", 1.4, 5.8), ("rank>=12", 0.8, 2.1)]
)
def test_cells_held_out_of_the_figure_are_predicted(spec, bounded, paper):
    ours = holdout(published.points(), "bounded", spec)
    assert ours.mape <= bounded
    assert ours.coverage90 >= 0.85
    assert holdout(published.points(), "paper", spec).mape == pytest.approx(paper, abs=0.05)


def test_the_figure_itself_chooses_the_bounded_form():
    verdict = compare(published.points())
    assert verdict.better == "bounded"
    assert verdict.cells == 70
    assert verdict.fits == (verdict.bounded, verdict.paper)
    assert verdict.best is verdict.bounded
    assert verdict.r2["bounded"] > verdict.r2["paper"]
    assert "bounded form has the lower AICc" in verdict.why


def test_a_logarithm_in_disguise_is_not_called_a_power_law():
    """Least squares on these cells runs to alpha -> 0 and C -> infinity, with an R^2 that looks good."""
    fit = fit_law(tiny("tiny_points.csv"), "paper")
    assert fit.r2 > 0.98
    assert fit.status.startswith("Not identifiable: alpha's 95% interval reaches 0")
    assert fit.alpha.low < 0 < fit.alpha.high
    assert fit.n == 15
    inside = [p for p in tiny("tiny_points.csv") if p.final_loss > 0.69]
    assert all(fit.predict(p.rank, p.length) == pytest.approx(p.delta_loss, rel=0.05) for p in inside)
    assert fit.mape < 4


def test_an_offset_larger_than_all_that_was_learned_is_not_believed():
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
    assert compare(cells).better == "bounded"


# --- known laws are found again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("truth", [PAPER, BOUNDED], ids=["paper", "bounded"])
def test_fit_finds_the_law_it_was_given_within_its_own_error_bars(truth, seed):
    cells = simulate(truth, noise=0.1, seed=seed)
    form = "bounded" if "n" in truth else "paper"
    fit = fit_law(cells if form == "bounded" else without_final(cells), form)
    assert fit.status == "ok"
    assert deviations(fit, truth).max() < 4
    assert fit.sigma == pytest.approx(0.1, rel=0.5)


@pytest.mark.parametrize("truth", [PAPER, BOUNDED], ids=["paper", "bounded"])
def test_95_percent_intervals_contain_the_truth_about_that_often(truth):
    fits = [
        fit_law(without_final(cells) if truth is PAPER else cells, "paper" if truth is PAPER else "bounded")
        for cells in (simulate(truth, noise=0.1, seed=1000 + seed) for seed in range(150))
    ]
    for name, value in truth.items():
        covered = np.mean([fit.parameters[name].low <= value <= fit.parameters[name].high for fit in fits])
        assert 0.90 <= covered <= 0.99, (name, covered)


@pytest.mark.parametrize("form", ["paper", "bounded"])
def test_90_percent_of_new_cells_fall_into_their_prediction_interval(form):
    truth = PAPER if form == "paper" else BOUNDED
    prepared = without_final if form == "paper" else list
    hits = []
    for seed in range(30):
        fit = fit_law(prepared(simulate(truth, noise=0.1, seed=seed)), form)
        new = simulate(truth, noise=0.1, seed=5000 + seed)
        at = np.array([(p.rank, p.length, p.delta_loss) for p in new if p.final_loss > 0.69 or form == "paper"]).T
        low, high = fit.interval(at[0], at[1])
        hits.extend((low <= at[2]) & (at[2] <= high))
    assert np.mean(hits) == pytest.approx(0.9, abs=0.03)


exponents = {"alpha": st.floats(0.3, 1.6), "beta": st.floats(0.25, 1.3)}


@settings(max_examples=40, deadline=None)
@given(level=st.floats(0.5, 20), b=st.floats(-3, 3), **exponents)
def test_cells_without_noise_give_the_papers_law_back(level, b, alpha, beta):
    truth = {"C": level * 2000**beta / 6**alpha, "alpha": alpha, "beta": beta, "b": b}
    fit = fit_law(simulate(truth, with_final=False), "paper")
    assert {name: fit.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-4, abs=1e-4)
    assert fit.r2 == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(level=st.floats(0.3, 1.2), b=st.floats(-1, 2), n=st.floats(1.2, 10), loss_init=st.floats(4, 14), **exponents)
def test_cells_without_noise_give_the_bounded_law_back(level, b, n, loss_init, alpha, beta):
    scale = level * loss_init * 2000**beta / 6**alpha
    truth = {"C": scale, "alpha": alpha, "beta": beta, "b": b * loss_init / 12, "n": n}
    fit = fit_law(simulate(truth, loss_init=loss_init), "bounded")
    assert {name: fit.parameters[name].value for name in truth} == pytest.approx(truth, rel=1e-3, abs=1e-3)


def test_the_order_of_cells_does_not_matter():
    cells = simulate(BOUNDED, noise=0.1)
    forwards, backwards = fit_law(cells, "bounded"), fit_law(cells[::-1], "bounded")
    assert backwards.theta == pytest.approx(forwards.theta, rel=1e-6)


def test_parameters_in_place_of_ranks_give_the_same_law():
    """N = k r: C_N = C k^-alpha, and nothing else changes."""
    cells = [replace(p, parameters=8192 * p.rank) for p in simulate(BOUNDED, noise=0.1)]
    by_rank, by_size = fit_law(cells, "bounded"), fit_law(cells, "bounded", axis="parameters")
    assert by_size.predict(8192 * 5.0, 3000) == pytest.approx(by_rank.predict(5.0, 3000), rel=1e-8)
    assert by_size.C.value == pytest.approx(by_rank.C.value * 8192**-by_rank.alpha.value, rel=1e-5)
    assert by_size.rank_for(3000) == pytest.approx(8192 * by_rank.rank_for(3000), rel=1e-6)
    assert by_size.sizes == (8192, 8192 * 32)
    assert by_size.ranks == (1, 32)


def test_a_cell_that_got_worse_is_kept():
    cells = simulate({**BOUNDED, "b": -1.5}, noise=0.05)
    assert any(cell.delta_loss < 0 for cell in cells)
    fit = fit_law(cells, "bounded")
    assert fit.n == len(cells)
    assert abs(fit.b.value + 1.5) < 4 * fit.b.stderr


# --- the curves ------------------------------------------------------------------------------------------------------

sizes = st.floats(1, 512)
lengths = st.floats(1, 1e5)


@given(rank=sizes, length=lengths, loss_init=st.floats(0.5, 15), b=st.floats(-2, 2), n=st.floats(0.5, 20))
def test_the_curves_are_those_written_out_cell_by_cell(rank, length, loss_init, b, n):
    truth = {**BOUNDED, "b": b, "n": n}
    theta = np.array([math.log(truth["C"]), truth["alpha"], truth["beta"], b, math.log(n)])
    one = np.ones(1)
    bounded, _ = curve(theta, rank * one, length * one, loss_init * one)
    assert bounded[0] == pytest.approx(law(truth, rank, length, loss_init), rel=1e-9, abs=1e-12)
    assert bounded[0] <= loss_init
    paper, _ = curve(theta[:4], rank * one, length * one, None)
    assert bounded[0] <= paper[0]


@given(u=st.floats(-5, 40), ceiling=st.floats(0.5, 15), n=st.floats(0.5, 20))
def test_slopes_are_differences_of_the_curve(u, ceiling, n):
    step = 1e-6
    _, slope, slope_bend = soft_bound(np.array([u]), np.array([ceiling]), n)
    if abs(u) > 10 * step:
        above, below = (soft_bound(np.array([u + s]), np.array([ceiling]), n)[0][0] for s in (step, -step))
        assert slope[0] == pytest.approx((above - below) / (2 * step), abs=1e-5)
    above, below = (soft_bound(np.array([u]), np.array([ceiling]), n * math.exp(s))[0][0] for s in (step, -step))
    assert slope_bend[0] == pytest.approx((above - below) / (2 * step), abs=1e-5)


@given(share=st.floats(-1, 0.999), ceiling=st.floats(0.5, 15), n=st.floats(0.5, 20))
def test_the_bound_can_be_undone(share, ceiling, n):
    delta = np.array([share * ceiling])
    u = unbound(delta, np.array([ceiling]), n)
    assert soft_bound(u, np.array([ceiling]), n)[0] == pytest.approx(delta, rel=1e-6, abs=1e-9)


def test_no_finite_u_reaches_the_ceiling():
    assert unbound(np.array([3.0, 4.0]), np.array([3.0, 3.0]), 2.0).tolist() == [math.inf, math.inf]
    # A bend this soft asks for more than a float holds; that is infinite too, and no warning.
    assert unbound(np.array([2.9999]), np.array([3.0]), 1e-3).tolist() == [math.inf]


@pytest.mark.parametrize("form", ["paper", "bounded"])
@given(rank=sizes, length=lengths, more=st.floats(1.01, 10))
def test_more_rank_never_holds_less_and_more_text_is_never_held_better(form, rank, length, more):
    fit = FITS[form]
    rounding = 1 + 1e-12
    assert fit.predict(rank * more, length) * rounding >= fit.predict(rank, length)
    assert fit.predict(rank, length * more, loss_init=12.0) <= fit.predict(rank, length, loss_init=12.0) * rounding
    if form == "bounded":
        assert fit.predict(rank, length) <= fit.loss_init_at(length)


FITS: dict[str, LawFit] = {form: fit_law(published.points(), form) for form in ("paper", "bounded")}


def test_predict_takes_arrays():
    fit = FITS["bounded"]
    together = fit.predict(np.array([1.0, 4.0]), np.array([500.0, 2000.0]))
    assert together.tolist() == [fit.predict(1, 500), fit.predict(4, 2000)]


def test_l_init_is_measured_interpolated_and_constant_outside():
    fit = fit_law([LawPoint(r, length, 2.0 + r, 8.0 - r - at) for length, at in ((100, 0), (400, 1)) for r in (1, 2)])
    assert fit.loss_init == ((100, 10.0), (400, 9.0))
    assert fit.loss_init_at(np.array([10.0, 100.0, 200.0, 400.0, 9999.0])) == pytest.approx([10, 10, 9.5, 9, 9])


# --- the law turned round --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["paper", "bounded"])
@given(length=st.floats(300, 50_000), loss=st.floats(0.02, 8))
def test_the_rank_for_a_loss_reaches_that_loss(form, length, loss):
    fit = FITS[form]
    rank = fit.rank_for(length, loss_final=loss)
    assert fit.loss_init_at(length) - fit.predict(rank, length) == pytest.approx(loss, rel=1e-6)
    dearer = fit.rank_for(length, loss_final=loss, loss_init=14.0)
    assert dearer > rank
    assert 14.0 - fit.predict(dearer, length, loss_init=14.0) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("form", ["paper", "bounded"])
@given(rank=st.floats(1, 64), loss=st.floats(0.05, 8))
def test_the_length_for_a_rank_ends_at_the_loss_asked_for(form, rank, loss):
    fit = FITS[form]
    length = fit.length_for(rank, loss_final=loss)
    assert fit.loss_init_at(length) - fit.predict(rank, length) == pytest.approx(loss, rel=1e-6)


def test_by_default_the_border_is_saturation():
    fit = FITS["bounded"]
    assert fit.rank_for(4000) == fit.rank_for(4000, loss_final=LN2)
    assert fit.length_for(fit.rank_for(4000)) == pytest.approx(4000, rel=1e-6)


def test_ends_of_the_inversion():
    fit = FITS["bounded"]
    easy = fit.b.value / 2
    assert fit.rank_for(1000, loss_init=1.0, loss_final=1.0 - easy) == 0
    assert fit.length_for(4, loss_init=1.0, loss_final=1.0 - easy) == math.inf
    assert fit.length_for(1e-6, loss_final=0.1) == 0
    shrinking = np.array([0.0, -0.1, 0.5, 0.0])
    assert size_for(shrinking, 100, 1.0, None) == math.inf


def test_a_loss_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"mean loss of 0 nats is asked for, but no finite adapter reaches 0"):
        FITS["bounded"].rank_for(1000, loss_final=0)


def test_without_final_losses_the_ceiling_must_be_given():
    fit = fit_law(simulate(PAPER, with_final=False))
    assert fit.rank_for(1000, loss_init=12.0) > 0
    with pytest.raises(FitError, match=r"L_init, the most that can be learned, is unknown\. Give loss_init"):
        fit.rank_for(1000)


# --- statuses: what cannot be fitted, and what should not be believed ------------------------------------------------


def status_of(points: list[LawPoint], form: str = "paper") -> str:
    fit = fit_law(points, form)
    assert fit.status != "ok"
    json.loads(fit.to_json(), parse_constant=lambda constant: pytest.fail(constant))
    return fit.status


def test_one_rank_or_one_length_tells_no_exponent():
    assert status_of(simulate(PAPER, ranks=(4,))) == (
        "All cells have one rank, so nothing tells how dL grows with it. Probe at least two."
    )
    assert status_of(simulate(PAPER, lengths=(1000,))) == (
        "All cells have one length, so nothing tells how dL falls with it. Probe at least two."
    )


@pytest.mark.parametrize("form", ["paper", "bounded"])
def test_all_cells_saturated(form):
    cells = [LawPoint(r, length, 9.9 + r / 1000, 0.1) for r in RANKS for length in LENGTHS]
    status = status_of(cells, form)
    assert status.startswith("All cells are saturated (final loss <= 0.69 nats)")
    assert status.endswith("Probe smaller ranks or longer lengths.")
    assert not fit_law(cells, form).parameters


def test_saturated_cells_are_left_out_of_the_papers_form_only():
    cells = simulate(BOUNDED)
    unsaturated = [cell for cell in cells if cell.final_loss > 0.69]
    assert fit_law(cells, "paper").n == len(unsaturated) < len(cells)
    assert fit_law(cells, "bounded").n == len(cells)


def test_the_bounded_form_needs_final_losses():
    assert "no cell has a final loss. Add the column final_loss" in status_of(
        without_final(simulate(BOUNDED)), "bounded"
    )
    mixed = simulate(BOUNDED)[:20] + without_final(simulate(BOUNDED)[20:])
    assert fit_law(mixed, "bounded").n == 20


def test_too_few_cells():
    three = [LawPoint(1, 100, 3.0), LawPoint(2, 100, 4.0), LawPoint(1, 200, 2.0)]
    assert status_of(three).startswith("3 usable cells cannot determine 4 parameters and leave any doubt to measure")
    assert not fit_law(three).parameters
    four = [*three, LawPoint(4, 200, 3.8)]
    fit = fit_law(four)
    assert "at least 5 are needed" in fit.status
    assert fit.alpha.stderr is None
    assert fit.alpha.low is None
    assert math.isfinite(fit.predict(2, 150))


def test_loss_that_does_not_fall_with_rank():
    cells = [LawPoint(r, length, 1 / r + length / 1000) for r in RANKS for length in LENGTHS]
    assert status_of(cells).startswith("dL does not grow with the rank in these cells")


def test_cells_far_from_saturation_cannot_tell_how_sharply_the_curve_bends():
    cells = simulate(PAPER, loss_init=100.0, noise=0.05)
    status = status_of(cells, "bounded")
    assert status.startswith("Not identifiable: how sharply dL bends to L_init (n), since too few cells are near it.")
    assert status.endswith("Add cells near saturation, or fit the paper's form.")


def test_length_without_effect_is_a_bound():
    noise = np.random.default_rng(0).normal(0, 0.01, len(RANKS) * len(LENGTHS))
    grid = [(r, length) for r in RANKS for length in LENGTHS]
    cells = [LawPoint(r, length, 3 * r**0.5 + e) for (r, length), e in zip(grid, noise, strict=True)]
    assert "beta stopped at the edge of the search" in status_of(cells)


def test_longer_lengths_measured_only_at_higher_ranks_determine_nothing():
    cells = [LawPoint(r, 500 * r, law(PAPER, r, 500 * r, 12.0)) for r in (1, 2, 3, 4, 6, 8, 12, 16)]
    assert status_of(cells).startswith("Not identifiable: other parameters fit these cells just as well")


def test_a_law_without_numbers_says_why_when_asked_for_one():
    fit = fit_law(simulate(PAPER, ranks=(4,)))
    with pytest.raises(FitError, match=r"This law has no alpha\. All cells have one rank"):
        _ = fit.alpha
    with pytest.raises(FitError, match="Probe at least two"):
        fit.predict(4, 1000)
    exact = fit_law(simulate(PAPER, ranks=(1, 4), lengths=(500, 4000), with_final=False))
    with pytest.raises(FitError, match=r"no error bars, so no interval\. 4 usable cells"):
        exact.interval(np.array([2.0]), np.array([1000.0]))


def test_cells_that_are_not_measurements_are_refused():
    with pytest.raises(FitError, match="rank 2 and length 100 is not a measurement"):
        fit_law([LawPoint(2, 100, math.nan)])
    with pytest.raises(FitError, match="must be above 0"):
        fit_law([LawPoint(0, 100, 1.0)])
    with pytest.raises(FitError, match="no cells to fit"):
        fit_law([])
    with pytest.raises(FitError, match="no number of parameters"):
        fit_law([LawPoint(2, 100, 1.0)], axis="parameters")
    with pytest.raises(ConfigError, match=r"no law of form 'cubic' on axis 'rank'\. Forms: paper, bounded"):
        fit_law([LawPoint(2, 100, 1.0)], "cubic")


# --- judging ---------------------------------------------------------------------------------------------------------


def test_hold_out_of_a_true_law_is_as_good_as_its_noise():
    result = holdout(simulate(BOUNDED, noise=0.02, seed=3), "bounded", "rank=MAX")
    assert result.cells == len(LENGTHS)
    assert result.mape < 1
    assert result.coverage90 >= 0.6
    one_length = holdout(simulate(PAPER, noise=0.02, with_final=False), "paper", "length=2000")
    assert one_length.cells == len(RANKS)


def test_a_hold_out_that_cannot_be_read_or_met():
    cells = simulate(PAPER, with_final=False)
    with pytest.raises(ConfigError, match=r"Cannot hold out 'size=3'\. Write length=MAX"):
        holdout(cells, "paper", "size=3")
    with pytest.raises(ConfigError, match=r"length=77 holds out no usable cell\. Cells have length 500, 1000"):
        holdout(cells, "paper", "length=77")
    with pytest.raises(ConfigError, match=r"rank>=1 holds out every usable cell"):
        holdout(cells, "paper", "rank>=1")
    with pytest.raises(FitError, match="All cells have one rank"):
        holdout(simulate(PAPER, ranks=(1, 2), with_final=False), "paper", "rank=MAX")


def test_compare_counts_parameters_as_akaike_does():
    cells = simulate(BOUNDED, noise=0.1)
    verdict = compare(cells)
    shared = [cell for cell in cells if cell.final_loss > 0.69]
    assert verdict.cells == len(shared)
    for form, count in (("paper", 4), ("bounded", 5)):
        fit = getattr(verdict, form)
        residuals = [p.delta_loss - fit.predict(p.rank, p.length) for p in shared]
        assert verdict.aicc[form] == pytest.approx(aicc(residuals, count))


def test_without_final_losses_only_the_papers_form_is_left():
    verdict = compare(simulate(PAPER, noise=0.1, with_final=False), source="a table")
    assert verdict.best is verdict.paper
    assert verdict.best.source == "a table"
    assert verdict.better == "paper"
    assert set(verdict.r2) == {"paper"}
    assert verdict.why.startswith("The bounded form cannot be relied on here.")


def test_a_power_law_far_below_the_ceiling_keeps_the_papers_form():
    cells = simulate(PAPER, loss_init=100.0, noise=0.05)
    assert compare(cells).better == "paper"


def test_no_form_at_all():
    with pytest.raises(FitError, match=r"Neither form can be fitted\. All cells have one rank"):
        compare(simulate(BOUNDED, ranks=(4,)))


# --- another kind of data, another model -----------------------------------------------------------------------------

OTHER_DATA = {**BOUNDED, "C": 250.0, "b": 1.4}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_few_cells_carry_the_law_to_data_with_the_same_exponents(seed):
    original = fit_law(simulate(BOUNDED, noise=0.05, seed=seed), "bounded")
    few = simulate(OTHER_DATA, loss_init=5.0, noise=0.05, seed=seed, ranks=(1, 2, 4, 8), lengths=(3000,))
    law_there = calibrate(original, few)
    assert law_there.n == 4
    for name in ("alpha", "beta", "n"):
        assert law_there.parameters[name].value == original.parameters[name].value
    assert deviations(law_there, OTHER_DATA).max() < 4
    assert law_there.predict(6, 3000) == pytest.approx(law(OTHER_DATA, 6, 3000, 5.0), abs=0.2)
    assert law_there.loss_init == ((3000, pytest.approx(5.0)),)
    assert law_there.source.endswith("C and b refitted to 4 cells")


def test_one_cell_moves_c_alone():
    original = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    moved = calibrate(original, simulate({**BOUNDED, "C": 350.0}, ranks=(4,), lengths=(2000,)))
    assert moved.b.value == original.b.value
    assert moved.predict(4, 2000) == pytest.approx(law({**BOUNDED, "C": 350.0}, 4, 2000, 12.0), abs=1e-4)
    assert moved.C.stderr > 0
    assert "C refitted to 1 cells" in moved.source


def test_replicates_of_one_cell_move_c_alone():
    original = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    moved = calibrate(original, 4 * simulate(OTHER_DATA, ranks=(4,), lengths=(2000,)))
    assert moved.b.value == original.b.value


def test_the_papers_form_is_calibrated_on_unsaturated_cells():
    original = fit_law(simulate(PAPER, noise=0.05, with_final=False))
    there = {**PAPER, "C": 100.0, "b": 0.5}
    cells = [p for p in simulate(there, loss_init=6.0, lengths=(2000,)) if p.final_loss > 0]
    moved = calibrate(original, cells)
    assert moved.n == sum(cell.final_loss > 0.69 for cell in cells)
    assert moved.predict(3, 2000) == pytest.approx(law(there, 3, 2000, 6.0), abs=0.05)


def test_calibrated_doubt_is_never_smaller_than_the_new_cells_allow():
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


def test_a_borrowed_law_stays_borrowed_in_its_exponents():
    lent = borrow(fit_law(simulate(BOUNDED, noise=0.05), "bounded", source="elsewhere"), factor=4.0, caveat="Not ours.")
    own = calibrate(lent, simulate(OTHER_DATA, loss_init=5.0, ranks=(1, 2, 4), lengths=(3000,)))
    assert own.caveat == "Exponents borrowed from elsewhere; only C and b come from this model's own cells."
    assert own.C.stderr / own.C.value < lent.C.stderr / lent.C.value


def test_calibration_needs_a_cell_that_is_not_saturated():
    original = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    with pytest.raises(FitError, match=r"No cell to calibrate with\. All cells are saturated"):
        calibrate(original, [LawPoint(64, 500, 4.9, 0.1)])
    with pytest.raises(FitError, match=r"No cell to calibrate with\. The bounded form needs L_init"):
        calibrate(original, [LawPoint(64, 500, 4.9)])


def test_a_borrowed_law_keeps_its_values_and_widens_its_doubt():
    own = fit_law(simulate(BOUNDED, noise=0.05), "bounded")
    lent = borrow(own, factor=4.0, caveat="Not this model's.")
    assert lent.caveat == "Not this model's."
    assert [e.value for e in lent.parameters.values()] == [e.value for e in own.parameters.values()]
    assert lent.alpha == own.alpha
    width = math.log(lent.C.high / lent.C.low) / own.alpha.value
    assert width > 2 * math.log(4)
    with pytest.raises(FitError, match="without error bars cannot be borrowed"):
        borrow(fit_law(simulate(PAPER, ranks=(4,))), factor=4.0, caveat="")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fit",
    [
        fit_law(published.points(), "bounded", source="a figure"),
        fit_law(simulate(PAPER, ranks=(4,))),
        fit_law(simulate(PAPER, ranks=(1, 4), lengths=(500, 4000), with_final=False)),
        fit_law(tiny("tiny_points.csv")),
    ],
    ids=["good", "no numbers", "no error bars", "not identifiable"],
)
def test_a_law_survives_its_file(fit):
    text = fit.to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))
    assert LawFit.from_json(text) == fit


def test_files_that_are_no_law():
    good = json.loads(FITS["bounded"].to_json())
    without = {key: value for key, value in good.items() if key != "covariance"}
    for text, message in [
        ("{", r"law\.json is not JSON \(line 1\)"),
        ("[1]", r"law\.json is JSON, but not a law of memlaw"),
        ('{"form": "paper"}', "not a law of memlaw"),
        (json.dumps(good | {"memlaw_law": 9}), "version 9; this memlaw reads 1"),
        (json.dumps(without), r"law\.json is a damaged law file: 'covariance'\. Fit it again"),
        (json.dumps(good | {"surprise": 1}), "damaged law file: .*surprise"),
        (json.dumps(good | {"sigma": "a lot"}), "damaged law file: could not convert"),
        (
            json.dumps(good | {"form": "paper"}),
            "damaged law file: form 'paper' with the parameters C, alpha, b, beta, n",
        ),
    ]:
        with pytest.raises(FitError, match=message):
            LawFit.from_json(text, name="law.json")


def test_the_summary_has_the_keys_others_rely_on():
    summary = FITS["bounded"].summary(holdout(published.points(), "bounded"))
    assert summary.keys() >= {"form", "status", "n", "r2", "mape", "parameters", "holdout"}
    assert summary["parameters"].keys() == {"C", "alpha", "beta", "b", "n"}
    assert summary["parameters"]["alpha"].keys() == {"value", "stderr", "low", "high"}
    assert summary["holdout"].keys() >= {"mape", "coverage90"}
    assert FITS["paper"].summary()["holdout"] is None
    json.dumps(summary, allow_nan=False)


def test_points_are_read_as_written(tmp_path):
    file = tmp_path / "points.csv"
    file.write_bytes(
        b"\xef\xbb\xbfrank, length,delta_loss,loss_final,seed,parameters\r\n"
        b"1,100,2.5,7.5,0,256\r\n\r\n2,100,-0.1,,1,\r\n"
    )
    assert read_points(file) == (LawPoint(1, 100, 2.5, 7.5, 256), LawPoint(2, 100, -0.1, None, None))


cells = st.builds(
    LawPoint,
    st.integers(1, 4096),
    st.integers(1, 10**7),
    st.floats(-5, 20),
    st.none() | st.floats(0, 20),
    st.none() | st.integers(1, 10**9),
)


@given(
    st.lists(cells, min_size=1, max_size=8),
    st.permutations(["rank", "length", "delta_loss", "final_loss", "parameters"]),
)
def test_any_table_of_cells_is_read_back(points, columns):
    def row(point):
        return ",".join("" if (value := getattr(point, column)) is None else repr(value) for column in columns)

    text = "\n".join([",".join(columns), *map(row, points)])
    assert points_from_text(text, name="t.csv") == tuple(points)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank,length\n1,2\n", r"t\.csv has no column delta_loss; its first line must name"),
        ("rank;length;delta_loss\n1;2;3\n", "no column rank nor length nor delta_loss; .* separated by commas"),
        ("", "no column rank nor length nor delta_loss; its first line"),
        ('{"prompt": "key", "completion": "hunter2"}\n', r"^((?!hunter2).)*not to facts\.$"),
        ("rank,length,delta_loss\n", "has a header but no points"),
        ("rank,length,delta_loss,rank\n1,2,3,4\n", "has the column rank twice"),
        ("rank,length,delta_loss\n1,2,3\n1,2,high\n", r"t\.csv, line 3: delta_loss is 'high', not a number"),
        ("rank,length,delta_loss\n1,2,9,13\n", "line 2 has 4 fields, but the first line names 3.*decimal point"),
        ("rank,length,delta_loss\n1,2,nan\n", "line 2: delta_loss is 'nan'. A cell that did not finish"),
        ("rank,length,delta_loss\n0,2,3\n", "line 2: rank is 0, but it counts something: a whole number from 1 up"),
        ("rank,length,delta_loss\n1.5,2,3\n", "line 2: rank is 1.5, but it counts something"),
        ("rank,length,delta_loss\n1,,3\n", "line 2: length is '', not a number"),
        ("rank,length,delta_loss,final_loss\n1,2,3,-1\n", "line 2: final_loss is -1, but a cross-entropy is never"),
        ('rank,length,delta_loss\n1,2,"3\n', r"t\.csv, line 2: unexpected end of data"),
    ],
)
def test_tables_that_cannot_be_read_say_where(text, message):
    with pytest.raises(FitError, match=message):
        points_from_text(text, name="t.csv")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FitError, match=r"nowhere\.csv cannot be read: No such file"):
        read_points(tmp_path / "nowhere.csv")
    with pytest.raises(FitError, match="cannot be read: Is a directory"):
        read_points(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"rank,l\xe4nge\n")
    with pytest.raises(FitError, match=r"not UTF-8 text \(byte 6\)"):
        read_points(tmp_path / "latin.csv")


# --- cells of a probe ------------------------------------------------------------------------------------------------


def result(rank: int, status: str = "finished", **changes) -> CellResult:
    train = TrainConfig(**changes.pop("train", {}))
    cell = Cell(**{"model": "m", "tokenizer": "t", "data": "d", "placement": "mlp@3", "dtype": "float32"} | changes,
                rank=rank, length=64, train=train)  # fmt: skip
    done = status == "finished"
    return CellResult(cell, status, 100, 256 * rank, 10.0, 10.0 - rank if done else None, float(rank) if done else None,
                      None, None, None, None, 1)  # fmt: skip


def test_finished_cells_become_points():
    points = points_from_results([result(1), result(2, "diverged"), result(3, train={"seed": 7})])
    assert points == (LawPoint(1, 64, 1.0, 9.0, 256), LawPoint(3, 64, 3.0, 7.0, 768))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"placement": "down_proj@3"}, r"differ in placement \(down_proj@3, mlp@3\)\. One law holds for one placement"),
        ({"train": {"method": "ot"}}, r"differ in method \(ot, sft\)"),
        ({"train": {"steps": 7}}, r"differ in steps \(1000, 7\)"),
        ({"train": {"until": "recalled"}}, r"stopped as soon as they were recalled .*fixed budget"),
    ],
)
def test_cells_of_two_kinds_share_no_law(other, message):
    with pytest.raises(FitError, match=message):
        points_from_results([result(1), result(2, **other)])


def test_the_law_loads_no_torch():
    code = "import sys, memlaw.law, memlaw.plan; print({'torch', 'transformers', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
