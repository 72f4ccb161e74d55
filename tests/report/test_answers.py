from __future__ import annotations

import html
import re

import pytest

from helpers.pages import PLAN, laws
from helpers.sample import fact, recall
from memlaw.core.errors import DataError
from memlaw.core.recall import TokenRecall
from memlaw.diagnosis.verdicts import diagnose
from memlaw.report import ReportContent, render


def answers(**given):
    """Question -> answer of a page that holds nothing else."""
    page = render(ReportContent(title="t", **given))
    pairs = re.findall(r"<dt>([^<]*\?)</dt><dd>(.*?)</dd>", page)
    return {question: html.unescape(answer) for question, answer in pairs}


def test_will_it_fit_is_answered_by_the_plan():
    assert answers(plan=PLAN)["Will it fit?"] == (
        "Yes, at rank 16 (95 %: 12 to 21): 60 records, 660 target tokens. "
        "660 tokens are 3 times the longest cell fitted."
    )
    hopeless = PLAN | {"rank": {"value": None, "low": 96, "high": None}, "reason": "It needs more than 128."}
    assert answers(plan=hopeless)["Will it fit?"].startswith("Not at any rank this law covers: 60 records, 660")
    assert "It needs more than 128." in answers(plan=hopeless)["Will it fit?"]


def test_a_plan_of_the_bare_contract_is_enough():
    bare = {
        "records": 1,
        "tokens": 9,
        "bits": 30.0,
        "rank": {"value": 2, "low": None, "high": None},
        "law": {"source": "x"},
    }
    assert answers(plan=bare)["Will it fit?"] == "Yes, at rank 2: 1 record, 9 target tokens."


def test_will_it_fit_without_a_plan_says_what_is_missing():
    assert answers()["Will it fit?"].startswith("Unknown: no law was fitted")
    answer = answers(fits=laws())["Will it fit?"]
    assert answer.startswith("Not planned yet: the law (bounded form) has R²")
    assert "over ranks 1 to 8 and lengths 16 to 256" in answer


@pytest.mark.parametrize(
    ("losses", "decoded", "beginning"),
    [
        (
            {"a": [0.1, 0.2], "b": [0.3]},
            True,
            "Yes. All 2 records came back verbatim and certified: every token has p > 1/2, by 0.393",
        ),
        ({"a": [0.1]}, True, "Yes. 1 record came back verbatim and certified"),
        (
            {"a": [0.1], "b": [2.0]},
            True,
            "Partly. 1 of 2 records came back verbatim under greedy decoding in float32; 1 of them",
        ),
        ({"a": [3.0], "b": [2.0]}, True, "No. None of 2 records came back verbatim"),
        ({"a": [0.1, 0.1]}, False, "Not proven: 2 of 2 tokens have p > 1/2, but without decoding"),
    ],
)
def test_did_it_stick(losses, decoded, beginning):
    assert answers(recall=recall(losses, decoded=decoded))["Did it stick?"].startswith(beginning)


def test_verbatim_without_a_certificate_is_not_called_certified():
    lucky = TokenRecall((0.1, 0.9), (True, True), (True, True))
    report = diagnose([fact("a", 2)], [lucky], tolerance=0.0, dtype="float32")
    answer = answers(recall=report)
    assert answer["Did it stick?"].startswith(
        "Yes. 1 of 1 record came back verbatim under greedy decoding in float32; 0 of them are certified"
    )
    assert (
        answer["Which tokens did not?"]
        == "1 of 2 tokens are stubborn (p ≤ 1/2), in 1 of 1 record. In 1 record, a single token is stubborn."
    )


def test_which_tokens_did_not():
    report = recall({"a": [0.1, 2.0, 2.0], "b": [0.1, 2.0, 0.1], "c": [0.1]})
    assert answers(recall=report)["Which tokens did not?"] == (
        "3 of 7 tokens are stubborn (p ≤ 1/2), in 2 of 3 records. In 1 record, a single token is stubborn. "
        "Greedy decoding first goes wrong most often at position 1 (2 records)."
    )
    assert answers(recall=recall({"a": [0.1, 0.2]}))["Which tokens did not?"] == "None: 2 tokens, each with p > 1/2."
    assert answers()["Which tokens did not?"] == "Unknown: recall was not measured."


def test_decoding_that_fails_although_every_token_is_ordered_is_reported():
    thin = TokenRecall((0.1, 0.69), (True, True), (True, False))
    report = diagnose([fact("a", 2)], [thin], tolerance=0.02, dtype="bfloat16")
    assert answers(recall=report)["Which tokens did not?"] == (
        "None: 2 tokens, each with p > 1/2. Greedy decoding first goes wrong most often at position 1 (1 record)."
    )


def test_a_file_other_than_a_plan_is_refused():
    with pytest.raises(DataError, match=r"The plan lacks bits, records, so .* `memlaw plan --json`"):
        answers(plan={"tokens": 3, "rank": {"value": 1}})
