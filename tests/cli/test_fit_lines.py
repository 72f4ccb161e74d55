from __future__ import annotations

import dataclasses

from helpers import sample
from helpers.words import words
from memlaw.cli.fit import comparison_lines, fit_lines
from memlaw.core.points import Estimate
from memlaw.law import compare, fit_law, holdout, published


def test_a_law_is_shown_with_its_doubts() -> None:
    points = published.points()
    told = words(fit_lines(fit_law(points, "paper"), holdout(points, "paper", "length=MAX")))
    assert told.startswith("The paper form, dL = C r^alpha l^-beta + b, on 70 cells: value +- 95% interval C ")
    assert "R^2 0.9959, MAPE 3.45%" in told
    assert "held out length=MAX: 10 cells, MAPE 6.0" in told
    assert told.endswith("inside the 90% interval")


def test_a_law_without_error_bars_says_unknown_and_one_without_a_bound_says_any() -> None:
    law = fit_law(sample.points(ranks=(1, 2), lengths=(16, 64)), "paper")
    told = words(fit_lines(law))
    assert "unknown unknown" in told
    assert law.status in told
    open_ended = dataclasses.replace(law, parameters={"C": Estimate(7.0, 2.0, 0.5, None)})
    assert "C 7 2 0.5 to any" in words(fit_lines(open_ended))


def test_a_law_that_could_not_be_fitted_is_its_status() -> None:
    law = fit_law(sample.points(lengths=(16,)), "paper")
    told = words(fit_lines(law))
    assert law.warnings
    assert told.endswith(" ".join([law.status, *(f"Note: {warning}" for warning in law.warnings)]))
    assert "interval" not in told


def test_the_other_form_stands_beside_the_better_one() -> None:
    told = words(comparison_lines(compare(published.points())))
    assert told.startswith("The paper form, beside it: R^2 0.9959, MAPE 3.45% on 70 cells.")
    assert "the bounded form predicts the held-out cells with a mean error of 0.71%, the paper form with 3.8%." in told


def test_where_another_form_than_the_best_is_saved_that_is_said() -> None:
    judged = compare(published.points())
    assert "Saved is" not in words(comparison_lines(judged))
    told = words(comparison_lines(judged, "log"))
    assert "The bounded form, beside it: R^2 0.9994" in told
    assert "The log form, beside it" not in told
    assert told.endswith(
        f"{judged.why} Saved is the log form: it knows a ceiling, and plans are made close to it, where forms without "
        "one promise what cannot be."
    )
