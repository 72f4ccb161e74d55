"""ledger.db: counts and margins of all versions for queries, kept beside the files and made from them alone.

It is brought up to date whenever it is opened, and made again if it is absent or damaged. Where the directory cannot be
written, it is made in memory. Nothing else in a ledger is decided by it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from memlaw.core import files
from memlaw.core.errors import LedgerError
from memlaw.ledger.layout import VIEW
from memlaw.ledger.records import Verdict, Version
from memlaw.ledger.store import Store

_SCHEMA = 2
"""Goes up with any change of the tables; a view of another number is made again."""

_TABLES = """
CREATE TABLE versions (
    number INTEGER PRIMARY KEY, manifest TEXT, parent INTEGER, created TEXT, rank INTEGER, facts INTEGER,
    certified INTEGER, lost INTEGER, tokens INTEGER, added INTEGER, changed INTEGER, retracted INTEGER, steps INTEGER,
    tokens_forwarded INTEGER, seconds REAL, loss_difference REAL, adapters INTEGER
);
CREATE TABLE adapters (
    version INTEGER, number INTEGER, rank INTEGER, tokens INTEGER, PRIMARY KEY (version, number)
) WITHOUT ROWID;
CREATE TABLE facts (
    fact INTEGER PRIMARY KEY, id TEXT, prompt TEXT, target TEXT, since INTEGER, tokens INTEGER,
    UNIQUE (id, prompt, target, since)
);
CREATE TABLE margins (
    fact INTEGER, version INTEGER, margin REAL, verdict TEXT, PRIMARY KEY (fact, version)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Entry:
    """A version in a line of `memlaw ledger log`."""

    version: int
    parent: int | None
    state: Literal["current", "past", "aside"]
    """past: the current version was made from it; aside: rolled back, or published by an update that was killed before
    it became current. `rollback` makes either current."""
    created: str
    rank: int
    facts: int
    certified: int
    lost: int
    tokens: int
    """Target tokens of the facts that come back."""
    added: int
    changed: int
    retracted: int
    steps: int | None
    tokens_forwarded: int | None
    seconds: float | None
    loss_difference: float | None
    """Side effects: nats a token on neutral text, of the adapter that costs most."""
    adapters: int
    """Adapters that the facts are spread over."""


@dataclass(frozen=True)
class Log:
    """All versions of a ledger, in the order of their numbers."""

    entries: tuple[Entry, ...]
    unreadable: tuple[int, ...]
    """Versions whose manifests are damaged or of another version of memlaw; `verify` says why."""


@dataclass(frozen=True)
class Seen:
    """A fact in one version."""

    version: int
    target: str
    """Hash; it differs once the fact was changed."""
    since: int
    margin: float
    verdict: Verdict


def log(store: Store) -> Log:
    """All versions, with what each changed. Raises LedgerError unless HEAD can be read."""
    current, _ = store.head_entry()
    rows = _ask(store, "SELECT * FROM versions ORDER BY number")
    parents = {row[0]: row[2] for row in rows}
    past = set()
    step = parents.get(current)
    while step is not None and step not in past:
        past.add(step)
        step = parents.get(step)
    entries = []
    for number, _, parent, *counts in rows:
        state: Literal["current", "past", "aside"] = "past" if number in past else "aside"
        entries.append(Entry(number, parent, "current" if number == current else state, *counts))
    return Log(tuple(entries), tuple(number for number in store.numbers() if number not in parents))


def history(store: Store, fact: str) -> tuple[Seen, ...]:
    """What became of the fact with this id, version by version; empty if no version holds it."""
    query = """SELECT version, target, since, margin, verdict FROM facts JOIN margins USING (fact) WHERE id = ?
               ORDER BY version"""
    return tuple(Seen(*row) for row in _ask(store, query, (fact,)))


def fitted(store: Store) -> tuple[tuple[int, int], ...]:
    """Rank, and target tokens brought back, of every adapter of every version."""
    return tuple((rank, tokens) for rank, tokens in _ask(store, "SELECT rank, tokens FROM adapters"))


def state(store: Store) -> Literal["current", "outdated", "absent"]:
    """Whether the view agrees with the files; if not, the next query makes it do so. Nothing is written."""
    path = store.root / VIEW
    if not path.exists():
        return "absent"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
            current = sound and _usable(connection) and _kept(connection) == _readable(store)
    except sqlite3.Error:
        return "outdated"
    return "current" if current else "outdated"


def _ask(store: Store, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    try:
        return _answer(store, str(store.root / VIEW), query, values)
    except sqlite3.OperationalError:  # a directory that cannot be written, a full disk, a busy view
        return _answer(store, ":memory:", query, values)
    except sqlite3.DatabaseError:  # damaged, or not a view
        return _again(store, query, values)


def _again(store: Store, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The answer of a view that is made from nothing; in memory if the damaged one cannot be removed."""
    for name in (VIEW, f"{VIEW}-journal"):
        files.discard(store.root / name)
    path = store.root / VIEW
    return _answer(store, ":memory:" if path.exists() else str(path), query, values)


def _answer(store: Store, place: str, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(place, timeout=60.0, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if not _usable(connection):
            _empty(connection)
        _update(connection, store)
        connection.execute("COMMIT")
        return connection.execute(query, values).fetchall()


def _usable(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("PRAGMA user_version").fetchone() == (_SCHEMA,))


def _empty(connection: sqlite3.Connection) -> None:
    """Start over within the transaction: `executescript` would commit it first."""
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        connection.execute(f'DROP TABLE "{table}"')
    for statement in _TABLES.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {_SCHEMA}")


def _update(connection: sqlite3.Connection, store: Store) -> None:
    """Add the versions that the view lacks, and remove those whose folders are gone. Versions never change."""
    kept, numbers = _kept(connection), store.numbers()
    for number in kept.keys() - set(numbers):
        connection.execute("DELETE FROM versions WHERE number = ?", (number,))
        connection.execute("DELETE FROM margins WHERE version = ?", (number,))
        connection.execute("DELETE FROM adapters WHERE version = ?", (number,))
    for number in numbers:
        if number not in kept:
            try:
                manifest = store.manifest(number)
            except LedgerError:
                continue
            _add(connection, manifest.version, manifest.sha256)


def _add(connection: sqlite3.Connection, version: Version, sha256: str) -> None:
    verdicts = [fact.verdict for fact in version.held]
    effort, effects, change = version.effort, version.side_effects, version.change
    row = (
        version.number, sha256, version.parent, version.created, version.rank, len(verdicts),
        verdicts.count("certified"), verdicts.count("lost"), version.tokens, len(change.added), len(change.changed),
        len(change.retracted), effort and effort.steps, effort and effort.tokens_forwarded, effort and effort.seconds,
        effects and effects.loss_difference, len(version.adapters),
    )  # fmt: skip
    connection.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.executemany(
        "INSERT INTO adapters VALUES (?, ?, ?, ?)",
        [(version.number, one.number, one.rank, one.tokens) for one in version.adapters],
    )
    names = [(fact.id, fact.prompt, fact.target, fact.since) for fact in version.held]
    connection.executemany(
        "INSERT OR IGNORE INTO facts (id, prompt, target, since, tokens) VALUES (?, ?, ?, ?, ?)",
        [(*name, fact.tokens) for name, fact in zip(names, version.held, strict=True)],
    )
    connection.executemany(
        """INSERT INTO margins SELECT fact, ?, ?, ? FROM facts
           WHERE id = ? AND prompt = ? AND target = ? AND since = ?""",
        [(version.number, fact.margin, fact.verdict, *name) for name, fact in zip(names, version.held, strict=True)],
    )


def _kept(connection: sqlite3.Connection) -> dict[int, str]:
    return dict(connection.execute("SELECT number, manifest FROM versions").fetchall())


def _readable(store: Store) -> dict[int, str]:
    """The versions with readable manifests, and the hashes of these."""
    hashes = {}
    for number in store.numbers():
        try:
            hashes[number] = store.manifest(number).sha256
        except LedgerError:
            continue
    return hashes
