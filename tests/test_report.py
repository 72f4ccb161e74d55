"""The report answers in plain sentences, leaks nothing, loads nothing, and shows hostile strings as what they are."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import html
import io
import json
import math
import re
import shutil
import stat
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sample import cell, diverged, fact, many, points, recall

import memlaw
from memlaw.diagnosis import diagnose, worst
from memlaw.errors import ConfigError, DataError, JournalError
from memlaw.law import fit_law
from memlaw.records import LN2, LawPoint, TokenRecall
from memlaw.report import SHOWN_TOKENS, WORST_RECORDS, FittedLaw, ReportContent, render, write

POLICY = "default-src 'none'; script-src 'sha256-"
HOSTILE = '</script></style><img src=x onerror="window.broken=1">&\'"\N{RIGHT-TO-LEFT OVERRIDE}{{ 7 * 7 }}'
PLAN = {
    "records": 60,
    "tokens": 660,
    "bits": 1993.2,
    "loss_init": 2.09,
    "target": 1.0,
    "loss_needed": {"nats": 0.05, "most": 0.05, "why": "No cell says better."},
    "rank": {"value": 16, "low": 12, "high": 21},
    "saturation": {"value": 11, "low": 8, "high": None},
    "largest_rank": 128,
    "reason": None,
    "extrapolates": "660 tokens are 3 times the longest cell fitted.",
    "caveats": ["One seed only."],
    "law": {"source": "this probe", "form": "bounded", "ranks": [1.0, 8.0], "lengths": [16.0, 256.0]},
    "lora_config": {"r": 16, "target_modules": ["down_proj"]},
    "cost": {"adapter_parameters": 4096, "adapter_bytes": 16384, "training_flops": 3.1e12},
}
VOID = {"meta", "link", "br", "hr", "img", "input", "col", "base"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; an end tag that closes nothing, or the wrong one, is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "tags left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


SCRIPT = (Path(memlaw.__file__).parent / "templates" / "report.js").read_text(encoding="utf-8")


def listed(page):
    """The records that the page's script is given."""
    return json.loads(re.search(r'id="record-data">(.*?)</script>', page, flags=re.DOTALL)[1])


@functools.cache
def laws():
    measured = points(ranks=(1, 2, 3, 4, 8), lengths=(16, 32, 64, 128, 256))
    fits = (fit_law(measured, form=form) for form in ("bounded", "paper"))
    return [FittedLaw(summary=fit.summary(), points=measured, predictor=fit) for fit in fits]


def content(**changes):
    """Everything at once."""
    cells = [cell(rank, length, 10 / rank, acc_token=rank / 8) for rank in (1, 2, 4) for length in (16, 64)]
    values = {
        "title": "Sixty phone numbers",
        "cells": [*cells, diverged(8, 16), cell(8, 64, 0.01, acc_token=1.0)],
        "fits": laws(),
        "plan": PLAN,
        "recall": many(20, 10),
        "sources": {"d" * 64: "random tokens"},
        "made": {"base": "memlaw/base", "versions": "memlaw 0.1.0"},
        "commands": ["memlaw probe", "memlaw report"],
    }
    return ReportContent(**values | changes)


@pytest.fixture(scope="module")
def full() -> str:
    return render(content())


# --- answers ---------------------------------------------------------------------------------------------------------


def answers(**given):
    """Question -> answer of a page that holds nothing else."""
    page = render(ReportContent(title="t", **given))
    found = re.findall(r"<dt>([^<]*\?)</dt><dd>(.*?)</dd>", page)
    return {question: html.unescape(answer) for question, answer in found}


def test_will_it_fit_is_answered_by_the_plan():
    assert answers(plan=PLAN)["Will it fit?"] == (
        "Yes, at rank 16 (95 %: 12 to 21): 60 records, 660 target tokens. "
        "660 tokens are 3 times the longest cell fitted."
    )
    hopeless = PLAN | {"rank": {"value": None, "low": 96, "high": None}, "reason": "It needs more than 128."}
    assert answers(plan=hopeless)["Will it fit?"].startswith("Not by any rank this law can vouch for: 60 records, 660")
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
    assert answers()["Will it fit?"].startswith("Not known: no law was fitted")
    told = answers(fits=laws())["Will it fit?"]
    assert told.startswith("Not asked: the law (bounded form) has R²")
    assert "over ranks 1 to 8 and lengths 16 to 256" in told


@pytest.mark.parametrize(
    ("losses", "decoded", "beginning"),
    [
        (
            {"a": [0.1, 0.2], "b": [0.3]},
            True,
            "Yes. All 2 records came back verbatim and certified: p > 1/2 for every token, by 0.393",
        ),
        ({"a": [0.1]}, True, "Yes. 1 record came back verbatim and certified"),
        (
            {"a": [0.1], "b": [2.0]},
            True,
            "Partly. 1 of 2 records came back verbatim under greedy decoding in float32; 1 of them",
        ),
        ({"a": [3.0], "b": [2.0]}, True, "No. Not one of 2 records came back verbatim"),
        ({"a": [0.1, 0.1]}, False, "Not proven: 2 of 2 tokens have p > 1/2, but nothing was decoded"),
    ],
)
def test_did_it_stick(losses, decoded, beginning):
    assert answers(recall=recall(losses, decoded=decoded))["Did it stick?"].startswith(beginning)


def test_verbatim_without_a_certificate_is_not_called_certified():
    lucky = TokenRecall((0.1, 0.9), (True, True), (True, True))
    report = diagnose([fact("a", 2)], [lucky], tolerance=0.0, dtype="float32")
    told = answers(recall=report)
    assert told["Did it stick?"].startswith(
        "Yes. 1 of 1 record came back verbatim under greedy decoding in float32; 0 of them certified"
    )
    assert (
        told["Which tokens did not?"]
        == "1 of 2 tokens are stubborn (p ≤ 1/2), in 1 of 1 record. In 1 record it is a single token."
    )


def test_which_tokens_did_not():
    report = recall({"a": [0.1, 2.0, 2.0], "b": [0.1, 2.0, 0.1], "c": [0.1]})
    assert answers(recall=report)["Which tokens did not?"] == (
        "3 of 7 tokens are stubborn (p ≤ 1/2), in 2 of 3 records. In 1 record it is a single token. "
        "Greedy decoding first goes wrong most often at position 1 (2 records)."
    )
    assert answers(recall=recall({"a": [0.1, 0.2]}))["Which tokens did not?"] == "None: 2 tokens, each with p > 1/2."
    assert answers()["Which tokens did not?"] == "Not known without a recall."


def test_decoding_that_fails_although_every_token_is_ordered_is_told():
    thin = TokenRecall((0.1, 0.69), (True, True), (True, False))
    report = diagnose([fact("a", 2)], [thin], tolerance=0.02, dtype="bfloat16")
    assert answers(recall=report)["Which tokens did not?"] == (
        "None: 2 tokens, each with p > 1/2. Greedy decoding first goes wrong most often at position 1 (1 record)."
    )


def test_a_file_that_is_no_plan_is_refused():
    with pytest.raises(DataError, match=r"The plan lacks bits, records, so .* `memlaw plan --json`"):
        answers(plan={"tokens": 3, "rank": {"value": 1}})


def test_a_share_is_never_rounded_to_all_or_to_nothing():
    nearly = recall({"a": [0.1] * 9999 + [2.0]})
    assert "<dd>99.9 %<small>9,999 of 10,000" in render(ReportContent(title="t", recall=nearly))
    hardly = recall({"a": [2.0] * 9999 + [0.1]})
    assert "<dd>0.1 %<small>1 of 10,000" in render(ReportContent(title="t", recall=hardly))


# --- sections --------------------------------------------------------------------------------------------------------


ABSENT = {
    "cells": "No cell was measured.",
    "fits": "No law was fitted.",
    "plan": "No plan was made.",
    "recall": "No recall was measured.",
    "made": "Nothing was said of how it was made.",
}


def test_an_empty_report_says_what_each_section_would_need():
    page = Page(render(ReportContent(title="Nothing yet")))
    for sentence in ABSENT.values():
        assert sentence in page.text
    assert "figure" not in {tag for tag, _ in page.tags}


def test_a_full_report_lacks_nothing(full):
    page = Page(full)
    for sentence in ABSENT.values():
        assert sentence not in page.text
    assert [tag for tag, _ in page.tags].count("figure") == 9
    assert "arXiv:2605.30260" in page.text
    assert "nan" not in page.text
    assert "None" not in page.text.replace("None:", "")


def test_each_kind_of_cells_has_its_own_table_and_maps():
    kinds = [cell(1, 16), cell(1, 16, method="ot"), cell(1, 16, data="e" * 64), cell(1, 16, placement="down_proj")]
    page = Page(render(ReportContent(title="t", cells=kinds, sources={"d" * 64: "random tokens"})))
    assert page.text.count("All 1 cells") == 4
    for name in ("random tokens, sft, mlp@3", "random tokens, ot, mlp@3", "data eeeeeeee, sft", "sft, down_proj"):
        assert name in page.text


def test_seeds_share_a_map_and_have_a_column():
    page = render(ReportContent(title="t", cells=[cell(1, 16, seed=1), cell(1, 16, seed=2)]))
    assert page.count("<figure") == 2
    assert '<th class="r">seed</th>' in page
    assert "seed</th>" not in render(ReportContent(title="t", cells=[cell(1, 16)]))


def test_cells_that_did_not_finish_say_why():
    page = Page(render(ReportContent(title="t", cells=[diverged(8, 16, "The loss became NaN at step 43.")])))
    assert "Rank 8, length 16: The loss became NaN at step 43." in page.text
    assert "figure" not in {tag for tag, _ in page.tags}


def remembered(rank, length, loss_final, certified_tokens=0, **changes):
    return cell(rank, length, loss_final, loss_memoryless=10 * LN2, certified_tokens=certified_tokens, **changes)


def test_memory_is_told_in_bits_beside_what_is_published():
    cells = [remembered(1, 16, 6 * LN2), remembered(4, 16, 0.0, 16), remembered(1, 64, 9 * LN2), diverged(4, 64)]
    page = render(ReportContent(title="t", cells=cells))
    rows = re.findall(r'<tr><td class="r">(.*?)</td></tr>', page[page.index('id="bits"') : page.index('id="law"')])
    assert [row.split('</td><td class="r">') for row in rows] == [
        ["16", "160", "160 at rank 4", "160 at rank 4", "0.250 at rank 1"],
        ["64", "640", "64.0 at rank 1", "0", "0.250 at rank 1"],
    ]
    page = Page(page)
    assert "2 bits a parameter knowledge, whole models: Allen-Zhu and Li" in page.text
    assert "3.5 to 3.8 bits a parameter raw memorisation, whole models: Morris et al." in page.text
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {"https://arxiv.org/abs/2404.05405", "https://arxiv.org/abs/2505.24832"} <= links
    assert [tag for tag, _ in page.tags].count("figure") == 3


def test_each_kind_of_cells_has_its_own_bits_and_the_published_are_named_once():
    cells = [remembered(1, 16, 1.0), remembered(1, 16, 1.0, method="ot"), cell(1, 16, placement="down_proj")]
    page = render(ReportContent(title="t", cells=cells))
    part = page[page.index('id="bits"') : page.index('id="law"')]
    assert re.findall(r"<h3><bdi>(.*?)</bdi>", part) == [f"data dddddddd, {m}, mlp@3, float32" for m in ("sft", "ot")]
    assert part.count("<figure") == 2
    assert part.count("Allen-Zhu and Li") == 1


def test_an_adapter_that_holds_nothing_is_told_as_nothing():
    page = Page(render(ReportContent(title="t", cells=[remembered(1, 16, 8.0, certified_tokens=None)])))
    assert "16 160 0 \N{EN DASH} 0" in page.text


def test_results_of_earlier_versions_show_no_bits(full):
    assert "Memory in bits" not in full
    assert "Memory in bits" not in render(ReportContent(title="t"))


def test_both_forms_stand_side_by_side_with_their_doubts(full):
    page = Page(full)
    for words in ("bounded form", "paper form", "Status: ok.", "mean absolute error"):
        assert words in page.text
    summary = laws()[1].summary
    alpha = summary["parameters"]["alpha"]
    assert (
        f"{alpha['value']:#.3g} ± {alpha['stderr']:#.2g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")
        in page.text
    )


def test_a_fit_without_parameters_still_tells_its_status():
    few = points(ranks=(1, 2), lengths=(16,))
    fit = fit_law(few)
    assert fit.status != "ok"
    page = Page(render(ReportContent(title="t", fits=[FittedLaw(summary=fit.summary(), points=few, predictor=fit)])))
    assert fit.status in page.text


def test_cells_that_gained_nothing_are_counted_where_they_cannot_be_drawn():
    measured = [*points(), LawPoint(1, 512, -0.2, 10.2)]
    page = Page(render(ReportContent(title="t", fits=[dataclasses.replace(laws()[0], points=measured)])))
    assert "Not on these log axes: 1 cell without gain." in page.text


def test_the_plan_is_told_in_full(full):
    page = Page(full)
    for words in (
        "60 records, 660 target tokens, about 1,993 bits",
        "16 (95 %: 12 to 21); this placement allows 128",
        "from rank 11 (95 %: 8 and more)",
        "this probe, bounded form, ranks 1 to 8, lengths 16 to 256",
        "4,096 parameters, 16.4 kB",
        "One seed only.",
    ):
        assert words in page.text
    assert "LoraConfig(\n    r=16,\n    target_modules=[&#39;down_proj&#39;],\n)" in full


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
    assert "The 1 records of least trouble are left out of this list" in Page(page).text


def test_the_slider_shows_what_the_law_predicts_and_nothing_outside_the_cells(full):
    data = json.loads(re.search(r'id="law-data">(.*?)</script>', full, flags=re.DOTALL)[1])
    law = laws()[0].predictor
    assert (data["sizes"][0], data["sizes"][-1], data["lengths"][0], data["lengths"][-1]) == (1, 8, 16, 256)
    for length, row, initial in zip(data["lengths"], data["gain"], data["initial"], strict=True):
        assert row == pytest.approx([law.predict(size, length) for size in data["sizes"]], abs=1e-4)
        assert initial == pytest.approx(10.0)


def test_why_records_are_not_certified_and_what_to_do_are_told():
    cases = [
        TokenRecall((0.1, 2.0, 0.1), (True, False, True), (True, False, False), mended=True, unreachable=()),
        TokenRecall((2.0, 0.1, 0.1), (False, True, True), (False, False, False), mended=False, unreachable=(0,)),
        TokenRecall((0.1, 0.1, 2.0), (True, True, False), (True, True, False), mended=True, unreachable=()),
    ]
    report = diagnose([fact(name, 3) for name in "abc"], cases, tolerance=0.0, dtype="float32")
    page = Page(render(ReportContent(title="t", recall=report, advice=["Train <longer>."])))
    for words in (
        "a token with p at most 1/2 2 records",
        "a token that no adapter can give p > 1/2 1 record",
        "one token short of verbatim 2 of 3 failures",
        "out of reach of any adapter 1 of 3 stubborn tokens",
        "Spearman correlation 1.0 (95 %: 1.0 to 1.0, 3 records)",
        "Train <longer>.",
    ):
        assert words in page.text


def test_a_low_loss_without_recall_shows_in_a_table():
    report = recall({"a": [0.0] * 99 + [5.0], "b": [0.1, 0.1]})
    text = Page(render(ReportContent(title="t", recall=report))).text
    assert "0.0300 to 0.100 1 99.0 % 99.0 % 0" in text


def test_a_report_is_the_same_bytes_every_time(full):
    assert render(content()) == full


def test_a_large_report_stays_under_three_megabytes():
    cells = [cell(rank, 100 * step) for rank in range(1, 18) for step in range(1, 13)]
    assert len(render(ReportContent(title="t", cells=cells, recall=many(1000, 40))).encode()) < 3_000_000


# --- safety ----------------------------------------------------------------------------------------------------------


def hostile_content(text=HOSTILE):
    """`text` wherever a string of the user's can come in."""
    report = recall({text: [0.1, 2.0], "b": [0.1]})
    fit = laws()[0]
    return content(
        title=text,
        cells=[remembered(1, 16, 3.0), diverged(2, 16, text), remembered(4, 16, 0.1, 16, placement=text)],
        fits=[
            dataclasses.replace(fit, label=text, summary=fit.summary | {"status": text, "source": text}),
            dataclasses.replace(fit, label=text, summary=fit.summary | {"form": text}),
        ],
        plan=PLAN | {"reason": text, "caveats": [text], "lora_config": {text: text}, "law": {"source": text}},
        recall=report,
        texts={text: [text, text], "b": ["b"]},
        sources={"d" * 64: text},
        made={text: text},
        commands=[text],
    )


def test_hostile_strings_are_shown_and_never_become_markup():
    page = Page(render(hostile_content(), show_text=True))
    names = {tag for tag, _ in page.tags}
    assert names & {"script"}
    assert page.scripts[-1] == SCRIPT
    assert len(page.scripts) == [tag for tag, _ in page.tags].count("script") == 3
    assert not names & {"img", "iframe", "object", "embed", "form", "base", "foreignobject", "animate", "set"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
    assert page.text.count(" ".join(HOSTILE.split())) >= 15
    assert "49" not in page.text.replace(HOSTILE, "").split()


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_string_leaves_the_markup_as_it_was(text):
    def tags(name):
        shown = ReportContent(title=name, made={name: name}, plan=PLAN | {"reason": name}, commands=[name])
        return [(tag, tuple(attributes)) for tag, attributes in Page(render(shown)).tags]

    assert tags(text) == tags("plain")


def test_nothing_is_loaded_and_everything_is_forbidden(full):
    page = Page(full)
    policies = [
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    allowed = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policies[0].startswith(f"{POLICY}{allowed}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'")
    kinds = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert kinds == ["application/json", "application/json", None]
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            if value is not None and (tag, name) != ("a", "href"):
                assert value.startswith(("#", "data:")), (tag, name, value)
    assert set(re.findall(r"url\((.)", full)) <= {"#"}
    assert "@import" not in full


def test_identifiers_are_unique(full):
    identifiers = [attributes["id"] for _, attributes in Page(full).tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


SECRETS = {"a": ["s3cr", "et-", "pass"], "b": ["t0ken"]}


def secret_content(**changes):
    return ReportContent(
        title="t", **{"recall": recall({"a": [0.1, 2.0, 0.1], "b": [0.1]}), "texts": SECRETS} | changes
    )


def test_target_text_is_left_out_unless_asked_for():
    page = render(secret_content())
    for piece in ("s3cr", "et-", "t0ken"):
        assert piece not in page
    assert "Target texts are left out." in page
    shown = render(secret_content(), show_text=True)
    assert '<bdi class="ordered">s3cr</bdi><bdi class="stubborn">et-</bdi><bdi class="ordered">pass</bdi>' in shown
    assert "This file contains the target texts." in shown


def test_text_that_is_not_there_or_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"none were passed in.*leave out --show-text"):
        render(secret_content(texts=None), show_text=True)
    with pytest.raises(DataError, match="Record 'a' has 3 target tokens but 1 pieces of text") as error:
        render(secret_content(texts={"a": ["s3cret-pass"]}), show_text=True)
    assert "s3cret" not in str(error.value)
    with pytest.raises(DataError, match="Record 'a' has 3 target tokens but 0 pieces of text"):
        render(secret_content(texts={"b": ["t0ken"]}), show_text=True)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_report_with_texts_is_for_its_owner_only(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("an older report")
    path.chmod(0o644)
    write(secret_content(), path, show_text=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "t0ken" in path.read_text(encoding="utf-8")


def test_a_report_without_texts_has_the_mode_of_any_new_file(tmp_path):
    other = tmp_path / "other"
    other.touch()
    write(secret_content(), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_mode == other.stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "report.html"]


def test_a_file_that_cannot_be_written_keeps_what_was_there(tmp_path):
    with pytest.raises(
        JournalError, match=r"report cannot be written to .*missing/report\.html: No such file or directory"
    ):
        write(secret_content(), tmp_path / "missing" / "report.html")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(JournalError, match="Is a directory"):
        write(secret_content(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_id_with_half_a_character_can_be_written(tmp_path):
    write(ReportContent(title="\ud800", recall=recall({"\udfff": [0.1]})), tmp_path / "report.html")
    assert "&#55296;" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_loads_no_torch():
    script = "import sys, memlaw.report; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install -y chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield chromium
        chromium.close()


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_quietly_in_a_browser(browser, tmp_path, width, scheme):
    path = Path(tmp_path) / "report.html"
    write(dataclasses.replace(hostile_content(), fits=laws()), path, show_text=True)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())

    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = [svg.bounding_box() for svg in page.locator("figure svg").all()]
    assert len(drawn) == 12
    assert all(box["width"] > 200 and box["height"] > 50 for box in drawn)
    assert len(Image.open(io.BytesIO(page.screenshot())).getcolors(1 << 24)) > 100
    details = page.locator("details").first
    was_open = details.evaluate("element => element.open")
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.evaluate("element => element.open") != was_open

    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert complaints == []
    assert requests == [path.as_uri()]
    page.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A page of thirty records, one of them with hostile text, and the list of its complaints."""
    records = {f"record-{k:02d}": [0.1, 0.1 + 0.03 * k, 0.2] for k in range(29)} | {HOSTILE: [0.1, 2.0, 0.1]}
    path = Path(tmp_path) / "report.html"
    texts = {name: ["one", HOSTILE, "three"] for name in records}
    write(content(recall=recall(records), texts=texts), path, show_text=True)
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    yield page
    assert page.evaluate("window.broken") is None
    assert complaints == []
    page.close()


@pytest.mark.browser
@needs_chromium
def test_a_record_opens_to_its_tokens_by_mouse(opened):
    worst_row = opened.locator("#records button.row").first
    assert worst_row.locator("bdi").text_content() == HOSTILE
    worst_row.click()
    assert worst_row.get_attribute("aria-expanded") == "true"
    details = opened.locator("#records .details")
    assert details.locator(".why").text_content().startswith("Decoding goes wrong at position 1: the target's token")
    assert details.locator(".told").text_content().startswith("position 1: p 0.135, loss 2.000 nats; stubborn")
    assert details.locator(".token").all_text_contents() == ["one", HOSTILE, "three"]
    details.locator(".token").nth(2).hover()
    assert details.locator(".told").text_content() == "position 2: p 0.905, loss 0.100 nats; ordered"
    worst_row.click()
    assert details.count() == 0


@pytest.mark.browser
@needs_chromium
def test_a_record_opens_to_its_tokens_by_keyboard(opened):
    opened.locator("#find").focus()
    opened.keyboard.type("record-07")
    assert opened.locator("#found").text_content() == "1 of 30 records"
    for _ in range(3):  # the order, the box, the only record
        opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    told = opened.locator("#records .told")
    assert told.text_content().startswith("position 0:")
    for key, position in (("ArrowRight", 1), ("End", 2), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        opened.keyboard.press(key)
        assert told.text_content().startswith(f"position {position}:")
        assert opened.evaluate("document.activeElement.getAttribute('aria-label')") == told.text_content()


@pytest.mark.browser
@needs_chromium
def test_records_are_found_ordered_and_filtered(opened):
    shown = opened.locator("#records button.row")
    assert shown.count() == 25
    opened.locator("#more").click()
    assert shown.count() == 30
    assert opened.locator("#more").is_hidden()
    opened.locator("#order").select_option("id")
    assert shown.nth(1).locator("bdi").text_content() == "record-00"
    opened.locator("#order").select_option("failure")
    assert shown.first.locator("bdi").text_content() == HOSTILE
    opened.locator("#stubborn-only").check()
    stubborn = sum(0.1 + 0.03 * k >= LN2 for k in range(29)) + 1
    assert opened.locator("#found").text_content() == f"{stubborn} of 30 records"
    assert shown.count() == stubborn


@pytest.mark.browser
@needs_chromium
def test_the_slider_tells_the_predicted_loss(opened):
    told = opened.locator("#law-told")
    opened.locator("#law-size").focus()
    opened.keyboard.press("Home")
    opened.locator("#law-length").focus()
    opened.keyboard.press("Home")
    gain = laws()[0].predictor.predict(1, 16)
    assert told.text_content() == (
        f"At rank 1 and 16 target tokens the mean loss falls by {gain:.3f} nats a token, from 10.000 to "
        f"{10 - gain:.3f}: not under ln 2."
    )
    opened.locator("#law-size").focus()
    opened.keyboard.press("End")
    assert told.text_content().startswith("At rank 8 and 16 target tokens")


@pytest.mark.browser
@needs_chromium
def test_a_printed_page_shows_the_table_and_not_the_list(opened):
    assert opened.locator(".still").is_hidden()
    opened.emulate_media(media="print")
    assert opened.locator(".still").is_visible()
    assert opened.locator("#explorer").is_hidden()
