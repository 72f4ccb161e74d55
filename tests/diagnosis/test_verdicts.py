"""The verdicts on records are those of the paper's definitions, and a certificate cannot be had more cheaply."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers import slow_diagnosis as reference_diagnosis
from helpers.sample import fact, recall
from helpers.verdicts import LOSSES, judge, measurements
from memlaw.core.errors import ConfigError, DataError
from memlaw.core.recall import LN2, TokenRecall, is_ordered
from memlaw.diagnosis.verdicts import diagnose, position_counts, stubborn_counts, stubborn_positions, worst


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


@given(st.lists(LOSSES, min_size=1, max_size=9))
def test_sampling_at_temperature_one_is_told_by_the_losses(nll):
    item = judge([TokenRecall(tuple(nll), (True,) * len(nll))]).items[0]
    assert math.exp(item.log_p) == pytest.approx(math.prod(math.exp(-loss) for loss in nll))
    assert item.expected_tokens == pytest.approx(reference_diagnosis.expected_tokens(nll))


def test_a_certified_record_can_be_a_bad_bet_when_sampled():
    item = judge([TokenRecall((0.6,) * 20, (True,) * 20, (True,) * 20)]).items[0]
    assert item.certified
    assert math.exp(item.log_p) < 1e-5
    assert item.expected_tokens < 1.3


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
    with pytest.raises(DataError, match=r"1 of 2 records were decoded.*decode every record, or none"):
        judge(tokens)


def test_nothing_to_judge_is_refused():
    with pytest.raises(DataError, match="No record was measured"):
        judge([])
    with pytest.raises(DataError, match="Record 'a' has no target tokens"):
        diagnose([fact("a", 0)], [TokenRecall((), ())], tolerance=0.0, dtype="float32")


@pytest.mark.parametrize("tolerance", [-1e-9, math.nan, math.inf])
def test_a_tolerance_that_would_certify_anything_or_nothing_is_refused(tolerance):
    with pytest.raises(ConfigError, match="tolerance of a certificate is"):
        judge([TokenRecall((0.1,), (True,), (True,))], tolerance)
