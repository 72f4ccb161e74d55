from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import POINTS, Run, assert_refused, write


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


def test_fit_shows_the_other_form_beside_the_better_one(run: Run) -> None:
    shown = run("fit", POINTS).out
    assert shown.startswith("The bounded form, dL = L (1 + (u/L)^-n)^(-1/n), u = C r^alpha l^-beta + b, on 70 cells:")
    assert "The paper form, beside it: R^2 0.9959, MAPE 3.45% on 70 cells." in shown


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
    assert_refused(run("fit", probed), "holds cells of the methods ot and sft", "Choose with --method")
    assert run("fit", probed, "--method", "ot", "--json").document["n"] == 9


def test_points_that_are_none_are_refused(run: Run, facts: Path, tmp_path: Path) -> None:
    assert_refused(run("fit", tmp_path / "none.csv"), "none.csv cannot be read: No such file or directory")
    assert_refused(run("fit", facts), "has no column rank nor length nor delta_loss", "not to facts")
    assert_refused(run("fit", tmp_path), "is not a probe directory: it has no probe.json")
    assert_refused(run("fit", POINTS, "--holdout", "size=3"), "Cannot hold out 'size=3'. Write length=MAX")
    assert_refused(run("fit", POINTS, "--form", "cubic"), "'cubic' is not one of 'paper', 'power'")
    assert_refused(run("fit", POINTS, "--method", "ot"), "the points of a table have no method")
    table = write(tmp_path / "points.csv", "rank,length,delta_loss\n1,10,0.5\n2,10,-\n")
    assert_refused(run("fit", table), "points.csv, line 3: delta_loss is '-', not a number")
