from __future__ import annotations

import json
import math
import re

from helpers.pages import Page
from helpers.sample import fact, many, recall
from memlaw.core.recall import LN2, TokenRecall
from memlaw.diagnosis.verdicts import diagnose, worst
from memlaw.report import SHOWN_TOKENS, WORST_RECORDS, ReportContent, render


def listed(page):
    """The records that the page's script is given."""
    return json.loads(re.search(r'id="record-data">(.*?)</script>', page, flags=re.DOTALL)[1])


def test_the_weakest_records_are_shown_token_by_token():
    report = many(40, 6)
    page = render(ReportContent(title="t", recall=report))
    assert [entry["id"] for entry in listed(page)] == [item.id for item in worst(report, 40)]
    shown = re.findall(r'<td class="id"><bdi>(.*?)</bdi>', page)
    assert shown == [item.id for item in worst(report, WORST_RECORDS)]
    strips = re.findall(r'<svg class="strip".*?</svg>', page, flags=re.DOTALL)
    for strip, item in zip(strips, worst(report, WORST_RECORDS), strict=True):
        assert strip.count("<title>") == item.length
        assert strip.count('class="stubborn"') == sum(loss >= LN2 for loss in item.tokens.nll)


def test_the_list_says_of_each_token_whether_it_is_ordered_and_decoded_right():
    tokens = TokenRecall((0.1, LN2, 0.2, 2.0), (True, True, True, False), (True, True, False, False), (3.0,) * 4)
    fine = TokenRecall((math.nextafter(LN2, 0),), (True,), (True,), unreachable=())
    first, second = listed(
        render(
            ReportContent(
                title="t",
                recall=diagnose([fact("a", 4), fact("b", 1)], [tokens, fine], tolerance=0.0, dtype="float32"),
            )
        )
    )
    assert (first["kinds"], first["nll"], first["rival"]) == ("osOS", [0.1, 0.693, 0.2, 2.0], [3.0] * 4)
    assert (first["stubborn"], first["failure"], first["verdict"]) == (1, 2, "wrong")
    assert (second["kinds"], second["verdict"], second["texts"]) == ("o", "certified", None)


def test_records_beyond_what_a_page_can_hold_are_counted():
    report = recall({f"r{k}": [0.1 + k / 99] * (SHOWN_TOKENS // 2) for k in range(3)})
    page = render(ReportContent(title="t", recall=report))
    assert [entry["id"] for entry in listed(page)] == [item.id for item in worst(report, 2)]
    assert "this list leaves out the 1 strongest records" in Page(page).text


def test_reasons_and_advice_for_uncertified_records_are_shown():
    cases = [
        TokenRecall((0.1, 2.0, 0.1), (True, False, True), (True, False, False), mended=True, unreachable=()),
        TokenRecall((2.0, 0.1, 0.1), (False, True, True), (False, False, False), mended=False, unreachable=(0,)),
        TokenRecall((0.1, 0.1, 2.0), (True, True, False), (True, True, False), mended=True, unreachable=()),
    ]
    report = diagnose([fact(name, 3) for name in "abc"], cases, tolerance=0.0, dtype="float32")
    page = Page(render(ReportContent(title="t", recall=report, advice=["Train <longer>."])))
    for words in (
        "a token with p at most 1/2 2 records",
        "a token that no adapter can raise above p = 1/2 1 record",
        "one token short of verbatim 2 of 3 failures",
        "unreachable for any adapter 1 of 3 stubborn tokens",
        "Spearman correlation 1.0 (95 %: 1.0 to 1.0, 3 records)",
        "Train <longer>.",
    ):
        assert words in page.text


def test_a_low_loss_without_recall_shows_in_a_table():
    report = recall({"a": [0.0] * 99 + [5.0], "b": [0.1, 0.1]})
    text = Page(render(ReportContent(title="t", recall=report))).text
    assert "0.0300 to 0.100 1 99.0 % 99.0 % 0" in text
