"""The result of a fit: predictions, the inverse of the law, sentences on extrapolation, and its file."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.paths import FIXTURES
from helpers.slow_law import PAPER, TRUTHS, simulate, simulate_for
from memlaw.core.errors import ConfigError, FitError
from memlaw.core.points import LawPoint
from memlaw.core.recall import LN2
from memlaw.law import LawFit, Origin, fit_law, holdout, published, read_points

DATA = FIXTURES

FITS: dict[str, LawFit] = {form: fit_law(published.points(), form) for form in ("paper", "power", "bounded")}

FITS["memory"] = fit_law(
    [replace(p, loss_memoryless=p.loss_init - 0.4) for p in published.points()], "memory"
)  # fmt: skip

FITS["log"] = fit_law(read_points(DATA / "tiny_points.csv"), "log")

forms = pytest.mark.parametrize("form", FITS)

sizes = st.floats(1, 512)

lengths = st.floats(1, 1e5)


@forms
@settings(deadline=None)
@given(rank=sizes, length=lengths, more=st.floats(1.01, 10))
def test_more_rank_never_holds_less_and_more_text_is_never_held_better(form, rank, length, more):
    fit = FITS[form]
    rounding = 1e-12 * (1 + abs(fit.predict(rank, length)))
    assert fit.predict(rank * more, length) >= fit.predict(rank, length) - rounding
    assert fit.predict(rank, length * more, loss_init=12.0) <= fit.predict(rank, length, loss_init=12.0) + rounding
    if form in ("bounded", "memory"):
        assert fit.predict(rank, length) <= fit.loss_init_at(length)


@forms
def test_predict_takes_arrays(form):
    fit = FITS[form]
    together = fit.predict(np.array([1.0, 4.0]), np.array([500.0, 2000.0]))
    assert together.tolist() == [fit.predict(1, 500), fit.predict(4, 2000)]


def test_l_init_is_measured_interpolated_and_constant_outside():
    fit = fit_law([LawPoint(r, length, 2.0 + r, 8.0 - r - at) for length, at in ((100, 0), (400, 1)) for r in (1, 2)])
    assert fit.loss_init == ((100, 10.0), (400, 9.0))
    assert fit.loss_init_at(np.array([10.0, 100.0, 200.0, 400.0, 9999.0])) == pytest.approx([10, 10, 9.5, 9, 9])


@pytest.mark.parametrize("form", ["paper", "power", "bounded"])
@settings(deadline=None)
@given(length=st.floats(300, 50_000), loss=st.floats(0.02, 8))
def test_the_rank_for_a_loss_reaches_that_loss(form, length, loss):
    fit = FITS[form]
    rank = fit.rank_for(length, loss_final=loss)
    assert fit.loss_init_at(length) - fit.predict(rank, length) == pytest.approx(loss, rel=1e-6)
    dearer = fit.rank_for(length, loss_final=loss, loss_init=14.0)
    assert dearer > rank
    assert 14.0 - fit.predict(dearer, length, loss_init=14.0) == pytest.approx(loss, rel=1e-6)


@settings(deadline=None)
@given(length=st.floats(16, 1000), loss=st.floats(0.1, 6))
def test_the_rank_for_a_loss_reaches_that_loss_on_a_logarithm(length, loss):
    fit = FITS["log"]
    rank = fit.rank_for(length, loss_final=loss)
    assert fit.loss_init_at(length) - fit.predict(rank, length) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("form", ["paper", "power", "bounded", "memory"])
@settings(deadline=None)
@given(rank=st.floats(1, 64), loss=st.floats(0.05, 8))
def test_the_length_for_a_rank_ends_at_the_loss_asked_for(form, rank, loss):
    fit = FITS[form]
    length = fit.length_for(rank, loss_final=loss)
    assert fit.loss_init_at(length) - fit.predict(rank, length) == pytest.approx(loss, rel=1e-6)


def test_by_default_the_border_is_saturation():
    fit = FITS["bounded"]
    assert fit.rank_for(4000) == fit.rank_for(4000, loss_final=LN2)
    assert fit.length_for(fit.rank_for(4000)) == pytest.approx(4000, rel=1e-6)


def test_the_inverse_is_zero_or_infinite_at_its_ends():
    fit = FITS["bounded"]
    easy = fit.b.value / 2
    assert fit.rank_for(1000, loss_init=1.0, loss_final=1.0 - easy) == 0
    assert fit.length_for(4, loss_init=1.0, loss_final=1.0 - easy) == math.inf
    assert fit.length_for(1e-6, loss_final=0.1) == 0


def test_a_loss_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"mean loss to reach is 0 nats, but no finite adapter reaches 0"):
        FITS["bounded"].rank_for(1000, loss_final=0)


def test_without_final_losses_the_ceiling_must_be_given():
    fit = fit_law(simulate(PAPER, with_final=False))
    assert fit.rank_for(1000, loss_init=12.0) > 0
    with pytest.raises(FitError, match=r"L_init, the largest possible dL, is unknown\. Pass loss_init"):
        fit.rank_for(1000)


def test_a_law_without_numbers_predicts_nothing():
    unfitted = fit_law(published.points(), "memory")
    for ask in (lambda: unfitted.predict(4, 1000), lambda: unfitted.rank_for(1000), lambda: unfitted.length_for(4)):
        with pytest.raises(FitError, match=r"This law has no C\. The memory form needs L_init'"):
            ask()


def test_outside_the_fitted_cells_it_says_so():
    fit = FITS["bounded"]
    assert fit.extrapolation(24, 10_000) is None
    assert fit.extrapolation(1, 200) is None
    assert fit.extrapolation(8, 40_000) == (
        "Outside the measured range: 40,000 target tokens (fitted: 200 to 10,000). The interval assumes that the law "
        "continues unchanged."
    )
    assert fit.extrapolation(48.5, 100).startswith(
        "Outside the measured range: 100 target tokens (fitted: 200 to 10,000); rank 48.5 (fitted: 1 to 24)."
    )
    by_size = fit_law(published.points(), "bounded", axis="parameters")
    assert "1,000,000 adapter parameters (fitted: 8,192 to 196,608)" in by_size.extrapolation(1e6, 500)
    assert by_size.extrapolation(8192, 500) is None


ORIGIN = Origin(model="Qwen3-8B", outline="ab12", placement="mlp@24", parameters_per_rank=8192.0, steps=2000,
                date="2026-05-01", version="0.2.0")  # fmt: skip

KEPT = {
    "bounded": FITS["bounded"],
    "memory": FITS["memory"],
    "no numbers": fit_law(simulate(PAPER, ranks=(4,))),
    "no error bars": fit_law(simulate(PAPER, ranks=(1, 4), lengths=(500, 4000), with_final=False)),
    "not identifiable": fit_law(read_points(DATA / "tiny_points.csv")),
    "origin": fit_law(published.points(), "log", source="a figure", origin=ORIGIN),
    "replicates": fit_law(simulate_for("power", noise=0.1, runs=2), "power", residuals="replicates"),
    "profile": fit_law(simulate_for("power", noise=0.1), "power", residuals="relative", intervals="profile"),
    "bootstrap": fit_law(simulate_for("log", noise=0.1, ranks=(1, 2, 4)), "log", intervals="bootstrap"),
}


@pytest.mark.parametrize("kept", KEPT)
def test_a_law_survives_its_file(kept):
    text = KEPT[kept].to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))
    assert LawFit.from_json(text) == KEPT[kept]


def test_a_file_of_the_first_version_is_still_read():
    """Written before there were other forms than two, residuals, replicates and an origin."""
    law = LawFit.from_json((DATA / "facts_law.json").read_text(encoding="utf-8"))
    assert '"memlaw_law":1' in (DATA / "facts_law.json").read_text(encoding="utf-8")
    assert (law.residuals, law.intervals, law.warnings, law.origin) == ("absolute", "standard", (), None)
    assert law.runs == law.n
    assert law.predict(4, 100) > 0
    assert LawFit.from_json(law.to_json()) == law


def test_files_that_are_not_laws_are_refused():
    good = json.loads(FITS["bounded"].to_json())
    without = {key: value for key, value in good.items() if key != "covariance"}
    for text, message in [
        ("{", r"law\.json is not JSON \(line 1\)"),
        ("[1]", r"law\.json is JSON, but not a law of memlaw"),
        ('{"form": "paper"}', "not a law of memlaw"),
        (json.dumps(good | {"memlaw_law": 9}), "version 9; this memlaw reads versions 1 and 2"),
        (json.dumps(without), r"law\.json is a damaged law file: it has no entry covariance\. Fit the law again\."),
        (json.dumps(good | {"surprise": 1}), "damaged law file: its entry surprise is unknown"),
        (json.dumps(good | {"sigma": "a lot"}), "damaged law file: sigma is 'a lot'; input should be a valid number"),
        (
            json.dumps(good | {"residuals": "none"}),
            "damaged law file: residuals is 'none'; input should be 'absolute', 'relative' or",
        ),
        (json.dumps(good | {"origin": {"moon": 1}}), r"damaged law file: its entry origin\.moon is unknown"),
        (
            json.dumps(good | {"form": "paper"}),
            "damaged law file: a law of the form paper cannot have the parameters C, alpha, b, beta, n",
        ),
    ]:
        with pytest.raises(FitError, match=message):
            LawFit.from_json(text, name="law.json")


@settings(deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)),
       st.sampled_from(sorted(json.loads(FITS["bounded"].to_json()))))  # fmt: skip
def test_any_other_value_in_a_file_gives_a_sentence_or_a_law(value, key):
    changed = json.loads(FITS["bounded"].to_json()) | {key: value}
    try:
        law = LawFit.from_json(json.dumps(changed))
    except FitError:
        return
    assert isinstance(law, LawFit)


def test_the_summary_has_the_keys_others_rely_on():
    summary = FITS["bounded"].summary(holdout(published.points(), "bounded"))
    assert summary.keys() >= {"form", "status", "n", "r2", "mape", "parameters", "holdout", "axis", "source"}
    assert summary.keys() >= {"warnings", "caveat", "residuals", "correlation", "runs", "intervals"}
    assert summary["parameters"].keys() == {"C", "alpha", "beta", "b", "n"}
    assert summary["parameters"]["alpha"].keys() == {"value", "stderr", "low", "high"}
    assert summary["holdout"].keys() >= {"mape", "coverage90"}
    assert len(summary["correlation"]) == 5
    assert FITS["paper"].summary()["holdout"] is None
    for form in TRUTHS:
        json.dumps(FITS[form].summary(), allow_nan=False)


def test_the_law_loads_no_torch():
    code = "import sys, memlaw.law; print({'torch', 'transformers', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
