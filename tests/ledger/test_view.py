"""ledger.db answers from the files alone, and is made again whenever it does not agree with them."""

from __future__ import annotations

import dataclasses
import errno
import os
import sqlite3
import threading

import pytest

from helpers.ledgers import SECRET, a_ledger, snapshot, some_facts, update
from memlaw.core.errors import LedgerError
from memlaw.ledger import view
from memlaw.ledger.records import Effort
from memlaw.ledger.store import Store


@pytest.fixture
def store(tmp_path):
    """a, b; then a changed and c added; then b retracted; then back to version 2 and d added."""
    made = a_ledger(tmp_path / "KB")
    update(made, some_facts("a", "b"))
    update(made, [*some_facts("a", value="!"), *some_facts("c")])
    update(made, [], ["b"])
    made.move_head(2)
    update(made, some_facts("d"))
    return made


def test_the_log_tells_what_each_version_changed_and_which_count(store):
    log = view.log(store)
    assert log.unreadable == ()
    lines = [
        (one.version, one.parent, one.state, one.facts, one.added, one.changed, one.retracted) for one in log.entries
    ]
    assert lines == [
        (0, None, "past", 0, 0, 0, 0),
        (1, 0, "past", 2, 2, 0, 0),
        (2, 1, "past", 3, 1, 1, 0),
        (3, 2, "aside", 2, 0, 0, 1),
        (4, 2, "current", 4, 1, 0, 0),
    ]
    assert [one.tokens for one in log.entries] == [0, 6, 9, 6, 12]


def test_the_log_has_the_effort_and_the_lost_facts_of_a_version(store):
    head = store.head()
    lost = dataclasses.replace(head.held[0], verdict="lost")
    version = dataclasses.replace(
        head, number=5, parent=4, held=(lost, *head.held[1:]), effort=Effort(70, 5000, 1.5, 2.0, 0.1)
    )
    store.publish(version)
    entry = view.log(store).entries[-1]
    assert (entry.steps, entry.tokens_forwarded, entry.seconds, entry.loss_difference) == (70, 5000, 1.5, None)
    assert (entry.certified, entry.lost, entry.tokens) == (3, 1, 9)


def test_the_history_of_a_fact_names_its_targets_and_margins(store):
    seen = view.history(store, "a")
    assert [(one.version, one.since, one.margin, one.verdict) for one in seen] == [
        (1, 1, 0.2, "certified"), (2, 2, 0.2, "certified"), (3, 2, 0.2, "certified"), (4, 2, 0.2, "certified"),
    ]  # fmt: skip
    assert len({one.target for one in seen}) == 2
    assert view.history(store, "nobody") == ()


DAMAGE = {
    "absent": None,
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "one page": lambda content: content[:4096],
    "no database": lambda content: b"x" * len(content),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_view_that_is_absent_or_damaged_is_made_again(store, damage):
    log, history = view.log(store), view.history(store, "a")
    assert view.state(store) == "current"
    path = store.root / "ledger.db"
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    assert view.state(store) == ("absent" if damage is None else "outdated")
    assert (view.history(store, "a"), view.log(store)) == (history, log)
    assert view.state(store) == "current"


def test_a_view_follows_the_versions_that_come_and_go(store):
    view.log(store)
    update(store, some_facts("e"))
    assert view.state(store) == "outdated"
    assert view.log(store).entries[-1].version == 5
    store.folder(5).rename(store.root / "elsewhere")
    store.move_head(4)
    assert view.log(store).entries[-1].version == 4
    assert view.history(store, "e") == ()


def test_a_view_of_another_version_of_memlaw_is_made_again(store):
    log = view.log(store)
    with sqlite3.connect(store.root / "ledger.db") as connection:
        connection.execute("DROP TABLE versions")
        connection.execute("CREATE TABLE versions (number INTEGER, oracle TEXT)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert view.state(store) == "outdated"
    assert view.log(store) == log


def test_a_version_that_cannot_be_read_is_listed_and_hides_no_other(store):
    (store.folder(3) / "manifest.json").write_bytes(b"{")
    log = view.log(store)
    assert [one.version for one in log.entries] == [0, 1, 2, 4]
    assert log.unreadable == (3,)


def test_without_a_readable_head_there_is_no_log(store):
    (store.root / "HEAD").unlink()
    with pytest.raises(LedgerError, match="HEAD is missing"):
        view.log(store)


def test_a_ledger_that_cannot_be_written_is_viewed_all_the_same(store, monkeypatch):
    log = view.log(store)
    (store.root / "ledger.db").unlink()
    before, connect = snapshot(store.root), sqlite3.connect

    def read_only(place, **options):
        if place != ":memory:":
            raise sqlite3.OperationalError(f"unable to open database file: {os.strerror(errno.EROFS)}")
        return connect(place, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    assert view.log(store) == log
    assert snapshot(store.root) == before


def test_several_readers_may_make_the_view_at_once(store):
    expected, answers = view.log(store), []
    (store.root / "ledger.db").unlink()
    threads = [threading.Thread(target=lambda: answers.append(view.log(Store(store.root)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4


def test_no_text_is_in_the_view(store):
    view.log(store)
    assert SECRET.encode() not in (store.root / "ledger.db").read_bytes()
