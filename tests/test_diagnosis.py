"""The verdicts on records are those of the paper's definitions, and a certificate cannot be had more cheaply."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference_diagnosis
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import fact, recall

from memlaw.diagnosis import (
    diagnose,
    is_ordered,
    position_counts,
    report_from_dict,
    report_to_dict,
    stubborn_counts,
    stubborn_positions,
    worst,
)
from memlaw.errors import ConfigError, DataError
from memlaw.records import LN2, TokenRecall

LOSSES = st.one_of(st.floats(0, 8), st.sampled_from([0.0, LN2, math.nextafter(LN2, 0), math.nextafter(LN2, 1)]))


@st.composite
def measurements(draw):
    """Some records with losses, and decoding of all of them or none, that need not fit the losses."""
    decoded = draw(st.booleans())
    tokens = []
    for length in draw(st.lists(st.integers(1, 7), min_size=1, max_size=6)):
        flags = st.lists(st.booleans(), min_size=length, max_size=length).map(tuple)
        nll = tuple(draw(st.lists(LOSSES, min_size=length, max_size=length)))
        tokens.append(TokenRecall(nll, draw(flags), draw(flags) if decoded else None))
    return tokens


@st.composite
def greedy_decodings(draw, losses=LOSSES):
    """Tokens as a model gives them: an ordered one is the argmax; decoding follows the argmax up to its first error."""
    nll = tuple(draw(st.lists(losses, min_size=1, max_size=12)))
    top1 = tuple(is_ordered(loss) or draw(st.booleans()) for loss in nll)
    decoded, on_track = [], True
    for hit in top1:
        decoded.append(hit if on_track else draw(st.booleans()))
        on_track = on_track and hit
    return TokenRecall(nll, top1, tuple(decoded))


def judge(tokens, tolerance=0.0):
    """The verdicts on records named by their place."""
    facts = [fact(str(row), len(measured.nll)) for row, measured in enumerate(tokens)]
    return diagnose(facts, tokens, tolerance=tolerance, dtype="float32")


# --- the theorem -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-40, 40), min_size=2, max_size=40))
def test_an_ordered_token_is_the_argmax_whatever_the_others_are(logits):
    shifted = np.array(logits) - max(logits)
    nll = np.log(np.exp(shifted).sum()) - shifted
    for token in range(len(logits)):
        if is_ordered(nll[token]):
            assert all(logits[token] > other for place, other in enumerate(logits) if place != token)


def test_a_tie_at_one_half_is_stubborn_in_every_precision():
    for dtype in (np.float32, np.float64):
        p = np.array([0.5, 0.5, 0.0], dtype=dtype)
        assert p.argmax() == 0
        assert not is_ordered(float(-np.log(p[1])))


def test_one_half_is_sufficient_but_not_necessary():
    assert np.array([0.40, 0.35, 0.25]).argmax() == 0
    assert not is_ordered(-math.log(0.40))


# --- verdicts --------------------------------------------------------------------------------------------------------


@given(measurements(), st.sampled_from([0.0, 1e-5, 0.02, 0.5]))
def test_verdicts_are_those_of_the_definitions(tokens, tolerance):
    report = judge(tokens, tolerance)
    for item, measured in zip(report.items, tokens, strict=True):
        found = item.exact, item.certified, item.margin, item.earliest_stubborn, item.first_failure
        assert found == reference_diagnosis.verdict(measured.nll, measured.decoded, tolerance)
        assert item.length == len(measured.nll)
        assert item.tokens == measured


@given(measurements())
def test_totals_count_the_items(tokens):
    report = judge(tokens)
    losses = [loss for measured in tokens for loss in measured.nll]
    assert (report.records, report.tokens) == (len(tokens), len(losses))
    assert report.ordered == sum(loss < math.log(2) for loss in losses)
    assert report.mean_loss == pytest.approx(np.mean(losses))
    assert report.min_margin == pytest.approx(math.log(2) - max(losses), abs=1e-12)
    if tokens[0].decoded is None:
        assert report.acc_em is report.acc_token is report.certified is None
    else:
        flags = [flag for measured in tokens for flag in measured.decoded]
        assert report.acc_token == pytest.approx(np.mean(flags))
        assert report.acc_em == pytest.approx(np.mean([all(measured.decoded) for measured in tokens]))
        assert report.certified == sum(item.certified for item in report.items)


@given(measurements())
def test_the_margin_is_positive_exactly_when_every_token_is_ordered(tokens):
    for item in judge(tokens).items:
        assert (item.margin > 0) == (item.earliest_stubborn is None) == all(map(is_ordered, item.tokens.nll))


@given(greedy_decodings())
def test_the_earliest_stubborn_token_is_a_lower_bound_on_the_first_failure(tokens):
    item = judge([tokens]).items[0]
    assume(item.first_failure is not None)
    assert item.earliest_stubborn <= item.first_failure


@given(greedy_decodings(losses=st.floats(0, math.nextafter(LN2, 0))))
def test_a_record_of_ordered_tokens_is_decoded_verbatim(tokens):
    item = judge([tokens]).items[0]
    assert item.exact
    assert item.certified


@pytest.mark.parametrize(
    ("nll", "decoded", "tolerance", "certified"),
    [
        ([0.1, 0.2], (True, True), 0.0, True),
        ([0.1, 0.2], (True, False), 0.0, False),
        ([0.1, LN2], (True, True), 0.0, False),
        ([0.1, 0.9], (True, True), 0.0, False),
        ([0.0, LN2 - 0.25], (True, True), 0.25, False),
        ([0.0, LN2 - 0.25], (True, True), 0.24, True),
        ([0.0, 0.0], None, 0.0, None),
    ],
    ids=[
        "both",
        "decoding failed",
        "tie",
        "stubborn but decoded",
        "margin is the tolerance",
        "margin above",
        "not decoded",
    ],
)
def test_a_certificate_needs_the_margin_and_the_decoding(nll, decoded, tolerance, certified):
    report = judge([TokenRecall(tuple(nll), (True, True), decoded)], tolerance)
    assert report.items[0].certified is certified
    assert report.certified == (None if certified is None else int(certified))


def test_accuracy_comes_from_decoding_and_not_from_teacher_forcing():
    tokens = TokenRecall((0.9, 0.1, 0.1, 0.1), (False, True, True, True), (False, False, True, False))
    report = judge([tokens])
    assert (report.acc_em, report.acc_token) == (0.0, 0.25)
    assert report.ordered == 3


# --- what to look at first -------------------------------------------------------------------------------------------


def test_the_worst_records_are_those_decoding_got_wrong_then_those_of_least_margin():
    items = {"fine": [0.1], "thin": [0.6], "wrong": [0.8], "very wrong": [3.0], "lucky": [2.0]}
    report = recall(items)
    lucky = TokenRecall((2.0,), (True,), (True,))
    report = diagnose(
        [fact(name, 1) for name in items],
        [lucky if item.id == "lucky" else item.tokens for item in report.items],
        tolerance=0.0,
        dtype="float32",
    )
    assert [item.id for item in worst(report, 5)] == ["very wrong", "wrong", "lucky", "thin", "fine"]
    assert [item.id for item in worst(report, 2)] == ["very wrong", "wrong"]
    assert len(worst(report, 100)) == 5


def test_records_of_equal_margin_keep_their_order():
    report = recall({"b": [0.3], "a": [0.3], "c": [0.3]}, decoded=False)
    assert [item.id for item in worst(report, 3)] == ["b", "a", "c"]


def test_stubborn_tokens_and_first_failures_are_counted_by_position():
    report = recall({"a": [0.1, 0.9, 0.1, 2.0], "b": [0.1, 0.1], "c": [0.0, LN2, 0.0]})
    assert [stubborn_positions(item) for item in report.items] == [(1, 3), (), (1,)]
    assert stubborn_counts(report) == (2, 0, 1)
    assert position_counts(item.first_failure for item in report.items) == {1: 2}
    assert list(position_counts([5, None, 0, 5, 2])) == [0, 2, 5]


@given(measurements())
def test_every_stubborn_token_is_counted_once(tokens):
    report = judge(tokens)
    assert sum(stubborn_counts(report)) == report.tokens - report.ordered
    for item, count in zip(report.items, stubborn_counts(report), strict=True):
        assert stubborn_positions(item)[:1] == (() if item.earliest_stubborn is None else (item.earliest_stubborn,))
        assert (count == 0) == (item.margin > 0)


# --- JSON ------------------------------------------------------------------------------------------------------------


@given(measurements(), st.sampled_from([0.0, 1e-5, 0.3]))
def test_a_report_survives_its_file(tokens, tolerance):
    report = judge(tokens, tolerance)
    assert report_from_dict(json.loads(json.dumps(report_to_dict(report), allow_nan=False))) == report


def test_the_document_has_the_keys_others_rely_on():
    document = report_to_dict(recall({"a": [0.1, 0.9]}))
    contract = {"records", "tokens", "acc_em", "acc_token", "certified", "ordered", "min_margin", "items"}
    assert document.keys() == contract | {"mean_loss", "tolerance", "dtype"}
    item = {"id", "length", "exact", "certified", "margin", "earliest_stubborn", "first_failure"}
    assert document["items"][0].keys() == item | {"tokens"}
    assert document["items"][0]["tokens"] == {"nll": [0.1, 0.9], "top1": [True, False], "decoded": [True, False]}
    assert (document["items"][0]["earliest_stubborn"], document["items"][0]["first_failure"]) == (1, 1)
    short = report_to_dict(recall({"a": [0.1, 0.9]}), per_token=False)
    assert short["items"][0].keys() == item


def test_positions_that_do_not_exist_are_null():
    item = report_to_dict(recall({"a": [0.1]}))["items"][0]
    assert item["earliest_stubborn"] is None
    assert item["first_failure"] is None


def test_a_file_may_say_more_than_the_report():
    report = recall({"a": [0.1]})
    assert report_from_dict({**report_to_dict(report), "adapter": "some/where"}) == report


def edited(change):
    document = report_to_dict(recall({"a": [0.1, 0.9], "b": [0.1]}))
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["items"][0].update(certified=True),
            "Record 'a': the stored verdict .* certified True.*certified False",
        ),
        (lambda d: d["items"][0].update(margin=0.4), "Record 'a': the stored verdict .margin 0.4"),
        (lambda d: d.update(certified=2), "The totals certified of this recall report are not those of its records"),
        (lambda d: d.update(acc_em=1.0, ordered=3), "The totals acc_em, ordered"),
        (lambda d: d["items"].pop(), "The totals records, tokens"),
        (lambda d: d["items"][1].pop("tokens"), "at items.1.tokens: Field required"),
        (lambda d: d.pop("tolerance"), "at tolerance: Field required"),
        (lambda d: d["items"][1]["tokens"].update(nll=["0.1"]), "at items.1.tokens.nll.0: .*valid number"),
        (lambda d: d["items"][1]["tokens"].update(nll=[0.1, 0.1]), "'b' has 1 target tokens but 2 values of nll"),
        (lambda d: d["items"][1]["tokens"].update(nll=[math.nan]), "not plain JSON"),
        (lambda d: d.update(tolerance=-1.0), "below 0 it would certify"),
        (lambda d: d.update(items=[], records=0, tokens=0), "No record was measured"),
    ],
)
def test_a_file_that_was_changed_is_refused(change, message):
    with pytest.raises((DataError, ConfigError), match=message):
        report_from_dict(edited(change))


def test_something_else_than_a_report_is_refused():
    with pytest.raises(DataError, match="not a recall report with per-token numbers"):
        report_from_dict({"form": "paper", "n": 3})
    with pytest.raises(DataError, match="at the top level"):
        report_from_dict(["a list"])


# --- measurements that cannot be judged ------------------------------------------------------------------------------


def test_measurements_of_other_facts_are_refused():
    with pytest.raises(DataError, match="2 facts came with measurements of 1"):
        diagnose([fact("a", 1), fact("b", 1)], [TokenRecall((0.1,), (True,))], tolerance=0.0, dtype="float32")
    with pytest.raises(DataError, match="Record 'a' has 2 target tokens but 1 values of nll"):
        diagnose([fact("a", 2)], [TokenRecall((0.1,), (True, True))], tolerance=0.0, dtype="float32")
    with pytest.raises(DataError, match="but 3 values of decoded"):
        diagnose([fact("a", 1)], [TokenRecall((0.1,), (True,), (True,) * 3)], tolerance=0.0, dtype="float32")


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_its_record_and_position(loss):
    with pytest.raises(DataError, match=f"Record 'b', position 1: the loss is {loss}.*measure in float32"):
        diagnose(
            [fact("a", 1), fact("b", 2)],
            [TokenRecall((0.1,), (True,)), TokenRecall((0.1, loss), (True, True))],
            tolerance=0.0,
            dtype="bfloat16",
        )


def test_a_decoding_of_some_records_is_refused():
    tokens = [TokenRecall((0.1,), (True,), (True,)), TokenRecall((0.1,), (True,))]
    with pytest.raises(DataError, match=r"1 of 2 records were decoded.*Decode every record, or none"):
        judge(tokens)


def test_nothing_to_judge_is_refused():
    with pytest.raises(DataError, match="No record was measured"):
        judge([])
    with pytest.raises(DataError, match="Record 'a' has no target token"):
        diagnose([fact("a", 0)], [TokenRecall((), ())], tolerance=0.0, dtype="float32")


@pytest.mark.parametrize("tolerance", [-1e-9, math.nan, math.inf])
def test_a_tolerance_that_would_certify_anything_or_nothing_is_refused(tolerance):
    with pytest.raises(ConfigError, match="tolerance of a certificate is"):
        judge([TokenRecall((0.1,), (True,), (True,))], tolerance)
