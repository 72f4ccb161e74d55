from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from helpers import sample
from helpers.commands import POINTS, Run, assert_refused, write
from helpers.words import words
from memlaw.cli.fit import comparison_lines, fit_lines
from memlaw.core.points import Estimate
from memlaw.law import compare, fit_law, holdout, published


def test_fit_of_the_published_points_gives_the_known_numbers(run: Run, tmp_path: Path) -> None:
    document = run("fit", POINTS, "--json").document
    assert {"form", "status", "n", "r2", "mape", "parameters", "holdout"} <= document.keys()
    assert (document["form"], document["status"], document["n"]) == ("bounded", "ok", 70)
    assert document["r2"] == pytest.approx(0.9994, abs=1e-4)
    assert document["mape"] == pytest.approx(0.95, abs=0.01)
    assert document["parameters"].keys() == {"C", "alpha", "beta", "b", "n"}
    for estimate in document["parameters"].values():
        assert estimate.keys() == {"value", "stderr", "low", "high"}
        assert estimate["low"] < estimate["value"] < estimate["high"]

    paper = run("fit", POINTS, "--form", "paper", "--holdout", "length=MAX", "--json").document
    assert (paper["form"], paper["parameters"].keys()) == ("paper", {"C", "alpha", "beta", "b"})
    assert paper["r2"] == pytest.approx(0.9959, abs=1e-4)
    assert paper["mape"] == pytest.approx(3.45, abs=0.01)
    assert {"mape", "coverage90"} <= paper["holdout"].keys()
    assert paper["holdout"]["mape"] == pytest.approx(6.0, abs=0.1)


def test_fit_prints_the_other_form_for_comparison(run: Run) -> None:
    shown = run("fit", POINTS).out
    assert shown.startswith("The bounded form, dL = L (1 + (u/L)^-n)^(-1/n), u = C r^alpha l^-beta + b, on 70 cells:")
    assert "For comparison, the paper form: R^2 0.9959, MAPE 3.45% on 70 cells." in shown


@pytest.mark.parametrize("form", ["paper", "power", "log", "bounded", "memory"])
def test_every_form_can_be_fitted_saved_and_planned_with(
    run: Run, model: Path, facts: Path, single: Path, tmp_path: Path, form: str
) -> None:
    law = tmp_path / f"{form}.json"
    assert run("fit", single, "--form", form, "--out", law, "--json").document["form"] == form
    assert run("plan", facts, "--model", model, "--law", law, "--json").document["law"]["form"] == form


def test_a_fit_may_be_over_parameters_of_relative_residuals_and_with_other_intervals(run: Run, single: Path) -> None:
    document = run("fit", single, "--form", "bounded", "--axis", "parameters", "--residuals", "relative",
                   "--intervals", "profile", "--json").document  # fmt: skip
    assert (document["axis"], document["residuals"], document["intervals"]) == ("parameters", "relative", "profile")
    assert_refused(run("fit", single, "--axis", "bytes"), "'bytes' is not one of 'rank', 'parameters'")
    assert_refused(run("fit", single, "--residuals", "cubed"), "'cubed' is not one of 'absolute', 'relative'")
    assert_refused(run("fit", single, "--intervals", "guessed"), "'guessed' is not one of 'standard', 'profile'")


def test_a_fit_of_several_methods_names_the_option_that_chooses(run: Run, probed: Path) -> None:
    assert_refused(run("fit", probed), "has cells of the methods ot and sft", "Choose it with --method")
    assert run("fit", probed, "--method", "ot", "--json").document["n"] == 9


def test_invalid_points_and_options_are_refused(run: Run, facts: Path, tmp_path: Path) -> None:
    assert_refused(run("fit", tmp_path / "none.csv"), "none.csv cannot be read: No such file or directory")
    assert_refused(run("fit", facts), "has no column rank nor length nor delta_loss", "not to facts")
    assert_refused(run("fit", tmp_path), "is not a probe directory: it has no probe.json")
    assert_refused(run("fit", POINTS, "--holdout", "size=3"), "Cannot hold out 'size=3'. Write length=MAX")
    assert_refused(run("fit", POINTS, "--form", "cubic"), "'cubic' is not one of 'paper', 'power'")
    assert_refused(run("fit", POINTS, "--method", "ot"), "the points of a table have no method")
    table = write(tmp_path / "points.csv", "rank,length,delta_loss\n1,10,0.5\n2,10,-\n")
    assert_refused(run("fit", table), "points.csv, line 3: delta_loss is '-', not a number")


def test_a_law_is_printed_with_its_error_bars() -> None:
    points = published.points()
    told = words(fit_lines(fit_law(points, "paper"), holdout(points, "paper", "length=MAX")))
    assert told.startswith("The paper form, dL = C r^alpha l^-beta + b, on 70 cells: value +- 95% interval C ")
    assert "R^2 0.9959, MAPE 3.45%" in told
    assert "held out length=MAX: 10 cells, MAPE 6.0" in told
    assert told.endswith("inside the 90% interval")


def test_missing_error_bars_are_unknown_and_missing_bounds_any() -> None:
    law = fit_law(sample.points(ranks=(1, 2), lengths=(16, 64)), "paper")
    told = words(fit_lines(law))
    assert "unknown unknown" in told
    assert law.status in told
    open_ended = dataclasses.replace(law, parameters={"C": Estimate(7.0, 2.0, 0.5, None)})
    assert "C 7 2 0.5 to any" in words(fit_lines(open_ended))


def test_a_law_that_could_not_be_fitted_prints_its_status() -> None:
    law = fit_law(sample.points(lengths=(16,)), "paper")
    told = words(fit_lines(law))
    assert law.warnings
    assert told.endswith(" ".join([law.status, *(f"Note: {warning}" for warning in law.warnings)]))
    assert "interval" not in told


def test_the_other_forms_are_compared_with_the_best() -> None:
    told = words(comparison_lines(compare(published.points())))
    assert told.startswith("For comparison, the paper form: R^2 0.9959, MAPE 3.45% on 70 cells.")
    assert "the bounded form predicts the held-out cells with a mean error of 0.71%, the paper form with 3.8%." in told


def test_saving_another_form_than_the_best_is_explained() -> None:
    judged = compare(published.points())
    assert "Saved the" not in words(comparison_lines(judged))
    told = words(comparison_lines(judged, "log"))
    assert "For comparison, the bounded form: R^2 0.9994" in told
    assert "For comparison, the log form" not in told
    assert told.endswith(
        f"{judged.why} Saved the log form: its loss reduction has a ceiling. Plans lie close to that ceiling, where a "
        "form without one predicts reductions that are impossible."
    )
