"""One ledger in Python: the verbs of `memlaw ledger`."""

from __future__ import annotations

import os

from memlaw.ledger import status, upkeep, view
from memlaw.ledger.records import Status, Version
from memlaw.ledger.store import Store


class Ledger:
    """A ledger on disk. Every method reads the files anew, and raises LedgerError if they are damaged or busy."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings = store.settings()
        """What all versions share."""

    def version(self, number: int | None = None) -> Version:
        """A version, by default the current one: its facts by id and hash, what it changed, and what that took."""
        return self.store.head() if number is None else self.store.version(number)

    def status(self) -> Status:
        """The current version in numbers, and what to do next."""
        return status.status(self.store)

    def log(self) -> view.Log:
        """All versions, and what each changed."""
        return view.log(self.store)

    def history(self, fact: str) -> tuple[view.Seen, ...]:
        """What became of the fact with this id, version by version."""
        return view.history(self.store, fact)

    def rollback(self, number: int) -> Version:
        """Make another version the current one; nothing is removed, and a later version can be made current again."""
        return self.store.move_head(number)

    def export(self, out: str | os.PathLike[str], number: int | None = None) -> int:
        """Copy the adapter of a version, by default the current one, to `out`; returns the number of the version."""
        return upkeep.export(self.store, out, number)

    def verify(self) -> upkeep.VerifyReport:
        """Check every file; changes nothing."""
        return upkeep.verify(self.store)


def open(path: str | os.PathLike[str]) -> Ledger:  # noqa: A001 - memlaw.ledger.open, as gzip.open
    """The ledger in a directory. Raises LedgerError if there is none, or one that a later memlaw wrote."""
    return Ledger(Store(path))
