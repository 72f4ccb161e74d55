"""What a page shows of a ledger comes from its files alone, without torch and without the folders of this machine."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.ledger_pages import a_story
from helpers.ledgers import a_ledger
from memlaw.core.errors import ConfigError, LedgerError
from memlaw.ledger.records import Audit
from memlaw.ledger.store import Store
from memlaw.report.ledger import collect_ledger


@pytest.fixture
def story(tmp_path: Path) -> Store:
    return a_story(tmp_path / "KB")


def an_audit(store: Store, number: int, adapter: str = "", **changes: object) -> Audit:
    version = store.version(number)
    held = tuple(dataclasses.replace(fact, margin=0.1) for fact in version.held)
    audit = Audit(number, held, version.retracted, adapter, "2026-12-01T08:00:00+00:00", **changes)
    store.keep_audit(audit)
    return audit


def test_the_versions_that_led_to_the_current_one_are_columns_and_others_are_named(story: Store):
    story.move_head(2)
    content = collect_ledger(story.root)
    assert [column.version.number for column in content.columns] == [1, 2]
    assert (content.name, content.aside, content.now.version) == ("KB", (3, 4), 2)
    assert content.matrix.versions == (1, 2)


def test_an_audit_of_a_version_s_own_adapter_replaces_what_was_measured(story: Store):
    audit = an_audit(story, 3, rounding=0.5)
    *_, third, _ = collect_ledger(story.root).columns
    assert (third.audit, third.served, third.measured, third.rounding) == (audit, None, audit, 0.5)
    assert third.side_effects == story.version(3).side_effects  # which the audit did not measure


def test_an_audit_of_what_is_served_stands_beside_it_and_names_no_folder(story: Store):
    an_audit(story, 4, adapter="/home/someone/served")
    *_, last = collect_ledger(story.root).columns
    assert (last.audit, last.measured, last.served.adapter) == (None, story.head(), "served")


def test_no_folder_of_this_machine_is_named(tmp_path: Path):
    a_ledger(tmp_path / "KB", model=str(tmp_path / "models" / "tiny"))
    content = collect_ledger(tmp_path / "KB")
    assert content.made["model"] == "tiny"
    assert content.now.advice == "Store facts: memlaw ledger update KB FACTS."


def test_texts_are_read_only_if_asked_for_and_a_ledger_without_them_says_so(story: Store, tmp_path: Path):
    assert collect_ledger(story.root).texts is None
    held = story.head().held[0]
    assert collect_ledger(story.root, show_text=True).texts[held.pair].id == held.id
    bare = a_story(tmp_path / "bare", texts=False)
    with pytest.raises(ConfigError, match=r"keeps none \(--no-text\)\. Leave out --show-text"):
        collect_ledger(bare.root, show_text=True)


def test_what_is_no_ledger_or_damaged_has_no_page(story: Store, tmp_path: Path):
    with pytest.raises(LedgerError):
        collect_ledger(tmp_path)
    (story.folder(2) / "manifest.json").write_text("{}")
    with pytest.raises(LedgerError, match="000002"):
        collect_ledger(story.root)


def test_a_page_of_a_ledger_loads_no_torch(story: Store, tmp_path: Path):
    script = (
        "import sys; from memlaw.report.ledger import collect_ledger; "
        "from memlaw.report.ledger_page import write_ledger; "
        f"write_ledger(collect_ledger({str(story.root)!r}), {str(tmp_path / 'r.html')!r}); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
