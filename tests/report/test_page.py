"""The report answers in plain sentences, leaks nothing, loads nothing, and shows hostile strings as plain text."""

from __future__ import annotations

import base64
import hashlib
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memlaw
from helpers.pages import HOSTILE, PLAN, Page, content, hostile_content
from helpers.sample import cell, many, recall
from memlaw.core.errors import ConfigError, DataError, JournalError
from memlaw.report import ReportContent, render, write

POLICY = "default-src 'none'; script-src 'sha256-"

SCRIPT = (Path(memlaw.__file__).parent / "report" / "templates" / "report.js").read_text(encoding="utf-8")

ABSENT = {
    "cells": "No cells were measured.",
    "fits": "No law was fitted.",
    "plan": "No plan was made.",
    "recall": "Recall was not measured.",
    "costs": "Side effects were not measured.",
    "made": "No settings or commands were recorded.",
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
    assert [tag for tag, _ in page.tags].count("figure") == 10
    assert "arXiv:2605.30260" in page.text
    assert "nan" not in page.text
    assert "None" not in page.text.replace("None:", "")


def test_the_plan_is_shown_in_full(full):
    page = Page(full)
    for words in (
        "60 records, 660 target tokens, about 1,993 bits",
        "16 (95 %: 12 to 21); this placement allows 128",
        "from rank 11 (95 %: 8 or more)",
        "this probe, bounded form, ranks 1 to 8, lengths 16 to 256",
        "4,096 parameters, 16.4 kB",
        "One seed only.",
    ):
        assert words in page.text
    assert "LoraConfig(\n    r=16,\n    target_modules=[&#39;down_proj&#39;],\n)" in full


def test_a_report_is_the_same_bytes_every_time(full):
    assert render(content()) == full


def test_a_large_report_stays_under_three_megabytes():
    cells = [cell(rank, 100 * step) for rank in range(1, 18) for step in range(1, 13)]
    assert len(render(ReportContent(title="t", cells=cells, recall=many(1000, 40))).encode()) < 3_000_000


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
    with pytest.raises(ConfigError, match=r"the recall contains none.*leave out --show-text"):
        render(secret_content(texts=None), show_text=True)
    with pytest.raises(DataError, match="Record 'a' has 3 target tokens but 1 texts of tokens") as error:
        render(secret_content(texts={"a": ["s3cret-pass"]}), show_text=True)
    assert "s3cret" not in str(error.value)
    with pytest.raises(DataError, match="Record 'a' has 3 target tokens but 0 texts of tokens"):
        render(secret_content(texts={"b": ["t0ken"]}), show_text=True)


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
