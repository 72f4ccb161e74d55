"""The page of a ledger: whole, quiet, without texts unless asked, and hostile ids stay text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import stat
from pathlib import Path

import pytest

import memlaw
from helpers.ledger_pages import a_large_content, a_story
from helpers.ledgers import SECRET, a_ledger
from helpers.pages import HOSTILE, Page
from memlaw.core.errors import ConfigError, JournalError
from memlaw.report.ledger import collect_ledger
from memlaw.report.ledger_page import render_ledger, write_ledger

SCRIPT = (Path(memlaw.__file__).parent / "report" / "templates" / "ledger.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_story(tmp_path_factory.mktemp("story") / "KB").root


@pytest.fixture(scope="module")
def full(story: Path) -> str:
    return render_ledger(collect_ledger(story))


def test_the_page_answers_without_its_script(full: str):
    page = Page(full)
    for words in (
        "The ledger KB",
        "Version 4 holds 4 facts, all certified.",
        "About 3,988 target tokens like these (95%: 2,488 to 5,988).",
        "Every fact comes back. Nothing to do.",
        "Facts that came back under one version and not under the next.",
        "Each column shows what was measured when the version was made.",
        "Prompts and targets are left out.",
    ):
        assert words in page.text
    assert [tag for tag, _ in page.tags].count("figure") == 3
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert "None" not in page.text.replace("None:", "")


def test_nothing_is_loaded_and_only_its_own_script_may_run(full: str):
    page = Page(full)
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    (policy,) = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{allowed}'; ")
    assert page.scripts[-1] == SCRIPT
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            if attributes.get(name) is not None and (tag, name) != ("a", "href"):
                assert attributes[name].startswith(("#", "data:")), (tag, name)


def test_a_page_is_the_same_bytes_every_time(full: str, story: Path):
    assert render_ledger(collect_ledger(story)) == full


def test_hostile_ids_never_become_markup(tmp_path: Path, full: str):
    def tags(page: str) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in Page(page).tags]

    hostile = render_ledger(collect_ledger(a_story(tmp_path / "KB", HOSTILE).root))
    assert tags(hostile) == tags(full)
    assert Page(hostile).text.count(" ".join(HOSTILE.split())) >= 2


def test_texts_are_left_out_unless_asked_for(full: str, story: Path, tmp_path: Path):
    assert SECRET not in full
    assert "What is door-a" not in full
    held = collect_ledger(story).columns[-1].version.held[0]
    assert held.prompt not in full
    content, path = collect_ledger(story, show_text=True), tmp_path / "r.html"
    path.write_text("an older page")
    path.chmod(0o644)
    write_ledger(content, path, show_text=True)
    shown = path.read_text(encoding="utf-8")
    assert SECRET in shown
    assert "This file contains prompts and targets." in shown
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="show_text must be what"):
        render_ledger(content)


def test_an_empty_ledger_has_a_page(tmp_path: Path):
    page = Page(render_ledger(collect_ledger(a_ledger(tmp_path / "KB").root)))
    for words in ("No version holds a fact.", "There is no version but the empty one.", "Store facts: memlaw ledger"):
        assert words in page.text
    assert "figure" not in {tag for tag, _ in page.tags}


def test_figures_need_two_versions_that_measured_something(story: Path):
    content = collect_ledger(story)
    bare = [dataclasses.replace(one, version=dataclasses.replace(one.version, adapters=())) for one in content.columns]
    page = Page(render_ledger(dataclasses.replace(content, columns=tuple(bare))))
    assert [tag for tag, _ in page.tags].count("figure") == 1


def test_a_file_that_cannot_be_written_says_so(story: Path, tmp_path: Path):
    with pytest.raises(JournalError, match="run `memlaw ledger report` again"):
        write_ledger(collect_ledger(story), tmp_path)


def test_a_large_page_stays_small():
    assert len(render_ledger(a_large_content(200, 50)).encode()) < 250_000
