"""What stands between a trained update and a version."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from helpers.sample import EFFECTS
from memlaw.core.errors import MemlawError
from memlaw.core.recall import LN2, RecallReport, TokenRecall
from memlaw.diagnosis.verdicts import judge, total
from memlaw.ledger.gate import Measured, Terms, objections, verdict
from memlaw.ledger.unwanted import Gone

TOLERANCE = 0.01


def report(**facts: tuple[float, bool]) -> RecallReport:
    """Facts of one token, from their loss and whether decoding gives them."""
    items = tuple(
        judge(name, TokenRecall(nll=(nll,), top1=(right,), decoded=(right,), faithful=True), TOLERANCE)
        for name, (nll, right) in facts.items()
    )
    return total(items, tolerance=TOLERANCE, dtype="float32", rounding=0.0)


GOOD = report(a=(0.1, True), b=(0.3, True))
THIN, LOST = (LN2 - TOLERANCE / 2, True), (3.0, False)
GONE = Gone("r", -20.0, -20.0, rise=0.0, decoded=False, decoded_base=False)


def test_a_fact_is_certified_ordered_or_lost() -> None:
    items = report(sure=(0.1, True), thin=THIN, lost=LOST, lucky=(1.0, True), unlucky=(0.1, False)).items
    assert [verdict(item) for item in items] == ["certified", "ordered", "lost", "lost", "lost"]


def test_an_update_that_keeps_to_the_terms_passes() -> None:
    assert objections(Measured(GOOD, (GONE,), EFFECTS), Terms()) == ()
    assert objections(Measured(None, (), None), Terms()) == ()


@pytest.mark.parametrize("state", [THIN, LOST])
def test_facts_that_would_not_be_certified_are_named_with_the_reason_and_the_levers(state: tuple[float, bool]) -> None:
    (sentence,) = objections(Measured(report(a=(0.1, True), bad=state, worse=state), (), EFFECTS), Terms(allow_loss=1))
    assert sentence.startswith("2 of 3 facts would not be certified (")
    assert ": bad, worse. " in sentence
    assert "higher --rank" in sentence
    assert sentence.endswith("--allow-loss 2.")
    assert objections(Measured(report(a=(0.1, True), bad=state, worse=state), (), EFFECTS), Terms(allow_loss=2)) == ()


def test_of_many_facts_the_first_few_are_named() -> None:
    (sentence,) = objections(Measured(report(**{f"f{n}": LOST for n in range(8)}), (), None), Terms())
    assert "f0, f1, f2, f3, f4 and 3 more." in sentence
    assert "f5" not in sentence


@pytest.mark.parametrize("change", [{"rise": math.log(10) + 0.01}, {"decoded": True}])
def test_a_retracted_target_that_would_come_back_is_named(change: dict[str, float]) -> None:
    measured = Measured(GOOD, (GONE, replace(GONE, id="back", **change)), EFFECTS)
    (sentence,) = objections(measured, Terms(allow_loss=9))
    assert sentence.startswith("1 retracted targets would still come back")
    assert ": back. " in sentence


@pytest.mark.parametrize("loss", [0.11, math.nan, math.inf])
def test_harm_has_a_bound(loss: float) -> None:
    (sentence,) = objections(Measured(GOOD, (), replace(EFFECTS, loss_difference=loss)), Terms())
    assert "nats a token on neutral text, and at most 0.1 are allowed" in sentence
    assert "--max-harm" in sentence


def test_the_bound_of_harm_may_be_lifted_and_a_better_model_is_no_harm() -> None:
    worse, better = (Measured(GOOD, (), replace(EFFECTS, loss_difference=loss)) for loss in (5.0, -0.2))
    assert objections(worse, Terms(max_harm=math.inf)) == ()
    assert objections(better, Terms(max_harm=0.0)) == ()


def test_all_objections_are_given_at_once() -> None:
    everything = Measured(report(a=LOST), (replace(GONE, decoded=True),), replace(EFFECTS, loss_difference=1.0))
    assert len(objections(everything, Terms())) == 3


def test_terms_that_nothing_could_keep_to_are_refused() -> None:
    for terms in ({"max_harm": math.nan}, {"allow_loss": -1}):
        with pytest.raises(MemlawError, match="choose"):
            Terms(**terms)  # type: ignore[arg-type]
