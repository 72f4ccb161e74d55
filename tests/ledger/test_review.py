from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from helpers.ledgers import a_ledger, some_facts, update
from memlaw.core.errors import LedgerError
from memlaw.ledger.records import Audit, Held
from memlaw.ledger.review import review
from memlaw.ledger.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Version 1 holds a and b, 2 also c; 3 was rolled back, and 4 was made from 2."""
    made = a_ledger(tmp_path / "KB")
    update(made, some_facts("a", "b"))
    update(made, some_facts("c"))
    update(made, some_facts("x"))
    made.move_head(2)
    update(made, some_facts("d"))
    return made


def with_a_lost(store: Store, number: int) -> Audit:
    def again(fact: Held) -> Held:
        return dataclasses.replace(fact, margin=-1.0, verdict="lost") if fact.id == "a" else fact

    version = store.version(number)
    return Audit(number, tuple(map(again, version.held)), version.retracted, "", "now")


def test_a_review_covers_the_versions_that_led_to_one(store: Store) -> None:
    found = review(store)
    assert found.matrix.versions == (1, 2, 4)
    assert [fact.id for fact in found.matrix.facts] == ["a", "b", "c", "d"]
    assert (found.forgetting.accuracy, found.forgetting.forgetting, found.losses) == (1.0, 0.0, ())
    assert review(store, 3).matrix.versions == (1, 2, 3)


def test_what_was_measured_again_counts_in_place_of_what_was_published(store: Store) -> None:
    found = review(store, audits=[with_a_lost(store, 2), with_a_lost(store, 3)])
    assert found.matrix.versions == (1, 2, 4)
    assert [(loss.fact.id, loss.by, loss.margin_after, loss.regained) for loss in found.losses] == [("a", 2, -1.0, 4)]
    assert review(store, audits=[with_a_lost(store, 4)]).forgetting.accuracy == 3 / 4


def test_an_empty_ledger_has_an_empty_review(tmp_path: Path) -> None:
    found = review(a_ledger(tmp_path / "KB"))
    assert (found.matrix.versions, found.matrix.facts, found.forgetting.accuracy) == ((), (), None)


def test_a_damaged_version_is_not_passed_over(store: Store) -> None:
    (store.folder(1) / "manifest.json").write_bytes(b"")
    with pytest.raises(LedgerError, match="manifest.json is damaged"):
        review(store)
