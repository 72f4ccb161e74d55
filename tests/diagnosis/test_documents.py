from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from helpers.paths import ROOT
from helpers.sample import EFFECTS, recall
from helpers.verdicts import judge, measurements
from memlaw.core.errors import ConfigError, DataError
from memlaw.diagnosis.documents import (
    RecallDocument,
    report_from_dict,
    report_schema,
    report_to_dict,
    side_effects_from_dict,
)


def test_the_schema_in_the_documentation_is_that_of_the_code():
    path = ROOT / "docs" / "schema" / "recall.json"
    assert path.read_text(encoding="utf-8") == json.dumps(report_schema(), indent=2) + "\n", (
        "memlaw.diagnosis.report_schema() changed: write its JSON there, and raise SCHEMA if a key went or changed"
    )


def test_every_key_of_the_schema_is_described():
    definitions = [report_schema(), *report_schema()["$defs"].values()]
    plain = {"nll", "top1", "decoded", "id", "length", "items", "records", "tokens", "dtype", "tolerance"}
    for definition in definitions:
        for name, key in definition["properties"].items():
            assert name in plain or "description" in key, name


DOCUMENT = TypeAdapter(RecallDocument)


@given(measurements())
def test_a_document_is_what_the_schema_describes(tokens):
    text = json.dumps(report_to_dict(judge(tokens), advice=["Train longer."], texts={"0": ["a"]}))
    document = DOCUMENT.validate_json(text, strict=True)
    assert document.advice == ("Train longer.",)
    assert document.texts == {"0": ("a",)}


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
    more = {"mean_loss", "tolerance", "rounding", "dtype", "schema", "patterns", "advice", "texts", "same_facts"}
    more.add("side_effects")
    assert document.keys() == contract | more
    item = {"id", "length", "exact", "certified", "margin", "earliest_stubborn", "first_failure"}
    item |= {"edits", "one_token_short", "log_p", "expected_tokens", "reason", "why"}
    assert document["items"][0].keys() == item | {"tokens"}
    tokens = {"nll": [0.1, 0.9], "top1": [True, False], "decoded": [True, False]}
    unknown = dict.fromkeys(("rival", "edits", "mended", "ended", "unreachable", "faithful"))
    assert document["items"][0]["tokens"] == tokens | unknown
    assert (document["items"][0]["earliest_stubborn"], document["items"][0]["first_failure"]) == (1, 1)
    short = report_to_dict(recall({"a": [0.1, 0.9]}), per_token=False)
    assert short["items"][0].keys() == item


@pytest.mark.parametrize(
    "effects", [EFFECTS, replace(EFFECTS, near_miss=None, near_misses=0, near_miss_base=None), None]
)
def test_side_effects_survive_the_file(effects):
    document = json.loads(json.dumps(report_to_dict(recall({"a": [0.1]}), side_effects=effects), allow_nan=False))
    assert side_effects_from_dict(document) == effects
    assert report_from_dict(document) == recall({"a": [0.1]})


def test_a_file_of_an_earlier_version_has_no_side_effects():
    document = report_to_dict(recall({"a": [0.1]}))
    del document["side_effects"]
    assert side_effects_from_dict(document) is None


@pytest.mark.parametrize("change", [{"kl": "much"}, {"kl": None}, {"texts": [1]}])
def test_side_effects_that_were_changed_are_refused(change):
    document = report_to_dict(recall({"a": [0.1]}), side_effects=EFFECTS)
    document["side_effects"] |= change
    with pytest.raises(DataError, match="side effects in this file cannot be read"):
        side_effects_from_dict(document)


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
        (lambda d: d.update(certified=2), "The totals certified of this recall report do not match its records"),
        (lambda d: d.update(acc_em=1.0, ordered=3), "The totals acc_em, ordered"),
        (lambda d: d["items"].pop(), "The totals records, tokens"),
        (lambda d: d["items"][1].pop("tokens"), "at items.1.tokens: Field required"),
        (lambda d: d.pop("tolerance"), "at tolerance: Field required"),
        (lambda d: d["items"][1]["tokens"].update(nll=["0.1"]), "at items.1.tokens.nll.0: .*valid number"),
        (lambda d: d["items"][1]["tokens"].update(nll=[0.1, 0.1]), "'b' has 1 target tokens but 2 values of nll"),
        (lambda d: d["items"][1]["tokens"].update(nll=[math.nan]), "not plain JSON"),
        (lambda d: d.update(tolerance=-1.0), "A negative tolerance would certify"),
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
