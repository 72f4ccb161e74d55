"""Does the law hold where it was not fitted? Hold-outs, and the choice among the forms."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.paths import FIXTURES
from helpers.slow_law import BOUNDED, LENGTHS, LOG, PAPER, POWER, RANKS, aicc, simulate, simulate_for
from memlaw.core.errors import ConfigError, FitError
from memlaw.core.points import LawPoint
from memlaw.law import compare, fit_law, holdout, published, read_points
from memlaw.law.points import is_saturated

DATA = FIXTURES


@pytest.mark.parametrize(
    ("spec", "bounded", "paper"),
    [("length=MAX", 1.3, 6.03), ("length>=7000", 1.4, 5.82), ("rank>=12", 0.8, 2.13), ("corner=MAX", 0.7, 2.28)],
)
def test_cells_held_out_of_the_figure_are_predicted(spec, bounded, paper):
    ours = holdout(published.points(), "bounded", spec)
    assert ours.mape <= bounded
    assert ours.coverage90 >= 0.85
    assert holdout(published.points(), "paper", spec).mape == pytest.approx(paper, abs=0.05)


def test_the_figure_itself_chooses_the_bounded_form():
    verdict = compare(published.points())
    assert verdict.best.form == "bounded"
    assert verdict.best.r2 >= 0.9993
    assert {fit.form for fit in verdict.fits} == {"paper", "power", "log", "bounded", "memory"}
    assert verdict.cells == 70
    assert verdict.holdouts == ("length=MAX", "rank=MAX", "corner=MAX")
    assert verdict.mape["bounded"] < 1 < verdict.mape["power"] < verdict.mape["paper"] < verdict.mape["log"]
    assert verdict.why == (
        f"Fitted without length=MAX, rank=MAX, corner=MAX, the bounded form predicts the held-out cells with "
        f"a mean error of {verdict.mape['bounded']:.2g}%, the paper form with {verdict.mape['paper']:.2g}%."
    )


def test_the_mean_error_is_that_of_the_three_hold_outs():
    points = published.points()
    verdict = compare(points)
    for form in ("paper", "bounded"):
        alone = [holdout(points, form, spec).mape for spec in verdict.holdouts]
        assert verdict.mape[form] == pytest.approx(np.mean(alone))


def test_if_the_power_law_diverges_a_form_that_can_be_trusted_is_chosen():
    measured = read_points(DATA / "tiny_points.csv")
    verdict = compare([replace(point, final_loss=None) for point in measured if not is_saturated(point)])
    assert verdict.best.form == "log"
    assert verdict.best.status == "ok"
    assert verdict.best.mape < 4
    assert [fit.form for fit in verdict.fits if fit.status == "ok"] == ["log", "power"]
    assert "The log form has the lower AICc" in verdict.why


def test_no_form_that_predicts_a_loss_below_0_is_led_with_however_well_it_fits_its_cells():
    """Forms without a ceiling are fitted to unsaturated cells; at the saturated ones they promise the impossible."""
    measured = read_points(DATA / "tiny_points.csv")
    verdict = compare(measured)
    most = {fit.form: max(fit.predict(p.rank, p.length) / p.loss_init for p in measured) for fit in verdict.fits[:-1]}
    assert [fit.form for fit in verdict.fits] == ["bounded", "log", "power", "paper", "memory"]
    assert most.pop("bounded") < 1 < min(most.values())
    assert [fit.form for fit in verdict.fits if fit.status == "ok"] == ["log", "power"]
    assert (
        "Do not plan with the log form: at rank 32, length 16, it predicts that the loss falls by 13.6" in verdict.why
    )
    assert "No form can be trusted here" in verdict.why


def test_too_few_cells_give_no_headline():
    """Four cells and three parameters: R^2 is 0.98 and means nothing."""
    few = simulate(POWER, ranks=(1, 2), lengths=(500, 1000), noise=0.05)
    fit = fit_law(few, "power")
    assert fit.parameters
    assert "too few" in fit.status
    assert (fit.r2, fit.mape) == (None, None)
    assert compare(few).best.r2 is None


def test_reachable_targets_on_a_tiny_model_choose_the_bounded_form():
    verdict = compare(read_points(DATA / "tiny_reachable_points.csv"))
    assert verdict.best.form == "bounded"
    assert verdict.cells == 19
    assert "predict the held-out cells about equally well" in verdict.why


@pytest.mark.parametrize("truth", [{**PAPER, "b": -1.0}, LOG], ids=["paper", "log"])
def test_the_form_the_cells_were_made_from_is_chosen(truth):
    form = "log" if "k" in truth else "paper"
    chosen = [compare(simulate(truth, noise=0.03, seed=seed, with_final=False)).best.form for seed in range(5)]
    assert chosen.count(form) >= 4


def test_a_power_law_far_below_the_ceiling_needs_no_ceiling():
    verdict = compare(simulate(PAPER, loss_init=100.0, noise=0.05))
    assert verdict.best.form in ("paper", "power")
    assert [fit.form for fit in verdict.fits[-2:]] == ["bounded", "memory"]


def test_the_form_without_offset_is_chosen_for_cells_without_offset():
    chosen = [compare(simulate(POWER, noise=0.05, seed=seed, with_final=False)).best.form for seed in range(5)]
    assert chosen.count("power") >= 4


def test_hold_out_of_a_true_law_is_as_good_as_its_noise():
    result = holdout(simulate(BOUNDED, noise=0.02, seed=3), "bounded", "rank=MAX")
    assert result.cells == len(LENGTHS)
    assert result.mape < 1
    assert result.coverage90 >= 0.6
    one_length = holdout(simulate(PAPER, noise=0.02, with_final=False), "paper", "length=2000")
    assert one_length.cells == len(RANKS)


def test_the_corner_is_the_upper_half_of_both_axes():
    """Six ranks and six lengths: nine cells of large rank and large length, and all others are fitted."""
    cells = simulate_for("paper", noise=0.02)
    assert holdout(cells, "paper", "corner=MAX").cells == 9
    five = [cell for cell in cells if cell.rank < 32]
    assert holdout(five, "paper", "corner=MAX").cells == 2 * 3
    rest = [cell for cell in cells if cell.rank < 8 or cell.length < 4000]
    fit = fit_law(rest, "paper")
    held = [cell for cell in cells if cell not in rest]
    errors = [abs(fit.predict(cell.rank, cell.length) / cell.delta_loss - 1) for cell in held]
    assert holdout(cells, "paper", "corner=MAX").mape == pytest.approx(100 * np.mean(errors))


def test_over_parameters_the_corner_is_one_of_parameters():
    cells = [replace(p, parameters=1000 * p.rank) for p in simulate_for("paper", noise=0.02)]
    by_rank = holdout(cells, "paper", "corner=MAX")
    by_size = holdout(cells, "paper", "corner=MAX", axis="parameters")
    assert (by_rank.cells, by_rank.mape) == (by_size.cells, pytest.approx(by_size.mape, rel=1e-4))


def test_replicates_are_held_out_together_and_judged_run_by_run():
    cells = simulate_for("paper", noise=0.1, runs=4)
    result = holdout(cells, "paper", "length=MAX")
    assert result.cells == len(RANKS)
    assert result.coverage90 * 4 * len(RANKS) == pytest.approx(round(result.coverage90 * 4 * len(RANKS)))
    assert result.coverage90 > 0.6


def test_relative_residuals_are_held_out_relatively():
    points = published.points()
    assert holdout(points, "paper", "length=MAX", residuals="relative").mape == pytest.approx(2.8, abs=0.1)


def test_a_hold_out_that_cannot_be_read_or_met():
    cells = simulate(PAPER, with_final=False)
    message = r"Cannot hold out 'size=3'\. Write length=MAX, rank=MAX, corner=MAX, length=2000 or rank>=12\."
    with pytest.raises(ConfigError, match=message):
        holdout(cells, "paper", "size=3")
    with pytest.raises(ConfigError, match=r"length=77 holds out no usable cell\. The cells have length 500, 1000"):
        holdout(cells, "paper", "length=77")
    with pytest.raises(ConfigError, match=r"rank>=1 holds out every usable cell"):
        holdout(cells, "paper", "rank>=1")
    with pytest.raises(ConfigError, match=r"corner=MAX holds out no usable cell"):
        holdout(simulate(PAPER, ranks=(4,), with_final=False), "paper", "corner=MAX")
    with pytest.raises(FitError, match="All cells have one rank"):
        holdout(simulate(PAPER, ranks=(1, 2), with_final=False), "paper", "rank=MAX")


@settings(deadline=None)
@given(st.text(max_size=12))
def test_any_other_specification_of_a_hold_out_is_refused(spec):
    with pytest.raises(ConfigError):
        holdout(simulate(PAPER, ranks=(1, 2), lengths=(500, 1000), with_final=False), "paper", spec)


def test_compare_counts_parameters_as_akaike_does():
    cells = simulate(BOUNDED, noise=0.1)
    verdict = compare(cells)
    shared = [cell for cell in cells if cell.final_loss > 0.69]
    assert verdict.cells == len(shared)
    assert set(verdict.aicc) == {"paper", "power", "log", "bounded"}
    for fit in verdict.fits[:-1]:
        residuals = [p.delta_loss - fit.predict(p.rank, p.length) for p in shared]
        assert verdict.aicc[fit.form] == pytest.approx(aicc(residuals, len(fit.parameters)))
        assert verdict.r2[fit.form] <= 1


def test_without_final_losses_the_bounded_form_is_last():
    verdict = compare(simulate(PAPER, noise=0.1, with_final=False), source="a table")
    assert verdict.best.source == "a table"
    assert {fit.form for fit in verdict.fits if not fit.parameters} == {"bounded", "memory"}
    assert "bounded" not in {**verdict.r2, **verdict.mape, **verdict.aicc}


def test_the_only_form_that_can_be_fitted_is_chosen():
    """All cells but those of rank 2 are saturated: the unbounded forms are left with one rank."""
    cells = simulate(BOUNDED, noise=0.0005, ranks=(2, 4, 8), lengths=(400, 500, 600))
    verdict = compare(cells)
    assert verdict.best.form == "bounded"
    assert verdict.best.status == "ok"
    assert verdict.why == (
        "Only the bounded form can be trusted here. The paper form: All cells have one rank, so they do not show "
        "how dL grows with it. Probe at least two."
    )


def test_a_form_that_cannot_be_trusted_comes_with_a_warning():
    cells = simulate({**PAPER, "C": 1e-3}, noise=0.5, with_final=False)
    verdict = compare(cells)
    assert verdict.best.status != "ok"
    assert verdict.why.startswith("No form can be trusted here. ")


def test_too_few_cells_to_hold_any_out_are_compared_without():
    cells = simulate_for("log", noise=0.01, ranks=(1, 4), lengths=(500, 2000))
    cells.append(LawPoint(2, 1000, 5.0))
    verdict = compare(cells)
    assert verdict.best.parameters
    assert verdict.why.endswith(".")


def test_no_form_at_all():
    with pytest.raises(FitError, match=r"No form of the law can be fitted\. All cells have one rank"):
        compare(simulate(BOUNDED, ranks=(4,)))


@settings(max_examples=4, deadline=None)
@given(st.permutations(range(36)))
def test_the_order_of_cells_does_not_matter(order):
    cells = simulate(BOUNDED, noise=0.1)
    assert [fit.form for fit in compare([cells[i] for i in order]).fits] == [fit.form for fit in compare(cells).fits]
