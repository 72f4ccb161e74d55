"""The verdicts on records are those of the paper's definitions, and a certificate cannot be had more cheaply."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import reference_diagnosis
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sample import fact, many, recall
from scipy import stats

from memlaw.diagnosis import (
    RecallDocument,
    diagnose,
    patterns,
    position_counts,
    report_from_dict,
    report_schema,
    report_to_dict,
    stubborn_counts,
    stubborn_positions,
    worst,
)
from memlaw.diagnosis.patterns import spearman
from memlaw.errors import ConfigError, DataError
from memlaw.records import LN2, TokenRecall, is_ordered

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


# --- sampling --------------------------------------------------------------------------------------------------------


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


# --- reasons ---------------------------------------------------------------------------------------------------------


REASONS = {
    "stubborn": (
        TokenRecall((0.1, 2.0, 0.1), (True, False, True), (True, False, True), (3.0, 0.2, 3.0), 1, True),
        "Decoding goes wrong at position 1: the target's token has p = 0.135, another token p = 0.819. All that "
        "follows comes back once this one token is put right.",
    ),
    "unreachable": (
        TokenRecall((0.1, 2.0), (True, False), (True, False), unreachable=(1,)),
        "Decoding goes wrong at position 1: the frozen head can give its token no p above 1/2, whatever the adapter "
        "does. Word the target differently, or adapt the head as well.",
    ),
    "stopped_early": (
        TokenRecall((2.0, 0.1), (False, True), (False, False), ended="early"),
        "Decoding goes wrong at position 0: the model ends its output there; the target's token has p = 0.135.",
    ),
    "ran_on": (
        TokenRecall((0.1, 2.0), (True, False), (True, False), ended="late"),
        "Decoding goes wrong at position 1: the model goes on where its output should end; the target's token has "
        "p = 0.135.",
    ),
    "after_end": (
        TokenRecall((0.1, 0.1), (True, True), (True, False), ended="inside"),
        "The target goes on at position 1, behind an end-of-sequence token, after which nothing is emitted. Take that "
        "token out of the target.",
    ),
    "near_tie": (
        TokenRecall((0.1, 0.693), (True, True), (True, False), (3.0, 0.6932)),
        "Decoding goes wrong at position 1, where teacher-forced the target's token was the most likely (p = 0.5, "
        "another token p = 0.5): the two ways of computing it differ by rounding. Judge in float32, or train with a "
        "margin.",
    ),
    "unproven": (
        TokenRecall((0.1, 0.9), (True, True), (True, True), (3.0, 1.2)),
        "Verbatim here, but nothing guarantees it: position 1 has p = 0.407, another token p = 0.301, at most 1/2.",
    ),
    "too_thin": (
        TokenRecall((0.1, 0.69), (True, True), (True, True)),
        "Every token is ordered, but position 1 by 0.0031 nats only; here teacher-forced and cached decoding differ by "
        "so much that 0.02 are needed.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_its_sentence(reason):
    tokens, sentence = REASONS[reason]
    item = judge([tokens], 0.02).items[0]
    assert (item.reason, item.why) == (reason, sentence)


def test_without_decoding_a_stubborn_token_is_the_reason_and_the_rest_is_not_claimed():
    stubborn, beyond, fine = judge(
        [
            TokenRecall((0.1, 2.0), (True, False)),
            TokenRecall((2.0,), (False,), unreachable=(0,)),
            TokenRecall((0.1,), (True,)),
        ]
    ).items
    assert (stubborn.reason, stubborn.why) == (
        "stubborn",
        "Position 1 has p = 0.135, at most 1/2; what decoding makes of it was not asked.",
    )
    assert beyond.reason == "unreachable"
    assert (fine.reason, fine.why) == (None, None)


@given(measurements(), st.sampled_from([0.0, 0.02]))
def test_a_decoded_record_has_a_reason_exactly_if_it_is_not_certified(tokens, tolerance):
    for item in judge(tokens, tolerance).items:
        assert (item.reason is None) == (item.why is None)
        if item.exact is not None:
            assert (item.reason is None) == bool(item.certified)


# --- patterns --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_the_correlation_is_spearmans_and_lies_in_its_interval(pairs):
    found = spearman(np.array(pairs, dtype=float).reshape(-1, 2))
    columns = [set(column) for column in zip(*pairs, strict=True)]
    if len(pairs) < 3 or any(len(column) == 1 for column in columns):
        assert found is None
        return
    assert found.value == pytest.approx(stats.spearmanr(pairs).statistic)
    assert found.n == len(pairs)
    assert -1 <= found.low <= found.high <= 1


def test_a_correlation_of_many_records_is_known_more_closely():
    def width(n):
        x = np.random.default_rng(0).normal(size=n)
        found = spearman(np.stack([x, x + np.random.default_rng(1).normal(size=n)], axis=1))
        assert found.low < found.value < found.high
        return found.high - found.low

    assert width(400) < width(40) / 2


def test_where_records_break_at_their_earliest_stubborn_token_the_correlation_is_one():
    found = patterns(many(60, 12, share_stubborn=0.1)).stubborn_vs_failure
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_the_patterns_count_what_the_records_say():
    tokens = [case for case, _ in REASONS.values()] + [TokenRecall((0.1,), (True,), (True,))]
    tokens = [case if case.unreachable else TokenRecall(**{**vars(case), "unreachable": ()}) for case in tokens]
    found = patterns(judge(tokens, 0.02))
    assert found.failures == 6
    assert found.reasons == dict.fromkeys(REASONS, 1)
    assert found.first_failures == {0: 1, 1: 5}
    assert (found.one_token_short, found.stubborn, found.unreachable, found.unavoidable) == (1, 5, 1, 1)


def test_without_decoding_or_reach_nothing_is_said_of_them():
    found = patterns(recall({"a": [0.1, 2.0]}, decoded=False))
    assert (found.failures, found.one_token_short, found.unreachable, found.unavoidable) == (None,) * 4
    assert (found.stubborn, found.stubborn_vs_failure, found.first_failures) == (1, None, {})
    assert (found.loss_bands[0].acc_token, found.loss_bands[0].exact) == (None, None)


@given(measurements())
def test_every_record_is_in_one_band_of_its_mean_loss(tokens):
    report = judge(tokens)
    bands = patterns(report).loss_bands
    assert sum(band.records for band in bands) == report.records
    for band in bands:
        inside = [
            item for item in report.items
            if band.low <= math.fsum(item.tokens.nll) / item.length < (math.inf if band.high is None else band.high)
        ]  # fmt: skip
        assert len(inside) == band.records
        assert band.ordered == pytest.approx(np.mean([loss < LN2 for item in inside for loss in item.tokens.nll]))
        if band.exact is not None:
            assert band.exact == sum(item.exact for item in inside)


def test_a_low_mean_loss_that_is_no_recall_shows_in_the_bands():
    band = patterns(recall({"a": [0.0] * 99 + [5.0]})).loss_bands[0]
    assert (band.low, band.high, band.records, band.exact, band.acc_token) == (0.03, 0.1, 1, 0, 0.99)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_the_schema_in_the_documentation_is_that_of_the_code():
    path = Path(__file__).parent.parent / "docs" / "schema" / "recall.json"
    assert path.read_text(encoding="utf-8") == json.dumps(report_schema(), indent=2) + "\n", (
        "memlaw.diagnosis.report_schema() changed: write its JSON there, and raise SCHEMA if a key went or changed"
    )


def test_every_key_of_the_schema_is_described():
    definitions = [report_schema(), *report_schema()["$defs"].values()]
    plain = {"nll", "top1", "decoded", "id", "length", "items", "records", "tokens", "dtype", "tolerance"}
    for definition in definitions:
        for name, key in definition["properties"].items():
            assert name in plain or "description" in key, name


@given(measurements())
def test_a_document_is_what_the_schema_describes(tokens):
    text = json.dumps(report_to_dict(judge(tokens), advice=["Train longer."], texts={"0": ["a"]}))
    found = TypeAdapter(RecallDocument).validate_json(text, strict=True)
    assert found.advice == ("Train longer.",)
    assert found.texts == {"0": ("a",)}


def test_a_document_of_another_version_is_refused():
    document = report_to_dict(recall({"a": [0.1]})) | {"schema": "memlaw.recall/9"}
    with pytest.raises(DataError, match="has the schema 'memlaw.recall/9', and this memlaw reads 'memlaw.recall/1'"):
        report_from_dict(document)


def test_a_sentence_that_was_put_into_a_file_is_not_repeated():
    document = report_to_dict(recall({"a": [0.9]}))
    document["items"][0] |= {"why": "All is well.", "expected_tokens": 1.0}
    assert report_from_dict(document) == recall({"a": [0.9]})
    assert report_from_dict(document).items[0].why.startswith("Decoding goes wrong at position 0")


@given(measurements(), st.sampled_from([0.0, 1e-5, 0.3]))
def test_a_report_survives_its_file(tokens, tolerance):
    report = judge(tokens, tolerance)
    assert report_from_dict(json.loads(json.dumps(report_to_dict(report), allow_nan=False))) == report


def test_the_document_has_the_keys_others_rely_on():
    document = report_to_dict(recall({"a": [0.1, 0.9]}))
    contract = {"records", "tokens", "acc_em", "acc_token", "certified", "ordered", "min_margin", "items"}
    more = {"mean_loss", "tolerance", "rounding", "dtype", "schema", "patterns", "advice", "texts"}
    assert document.keys() == contract | more
    item = {"id", "length", "exact", "certified", "margin", "earliest_stubborn", "first_failure"}
    item |= {"edits", "one_token_short", "log_p", "expected_tokens", "reason", "why"}
    assert document["items"][0].keys() == item | {"tokens"}
    tokens = {"nll": [0.1, 0.9], "top1": [True, False], "decoded": [True, False]}
    unknown = dict.fromkeys(("rival", "edits", "mended", "ended", "unreachable"))
    assert document["items"][0]["tokens"] == tokens | unknown
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
