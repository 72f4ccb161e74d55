"""What a page shows of a ledger, read from its files alone: no model, no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memlaw.core.errors import ConfigError
from memlaw.core.facts import Fact
from memlaw.core.side_effects import SideEffects
from memlaw.core.version import installed_version
from memlaw.ledger.audit import Matrix, matrix
from memlaw.ledger.records import Audit, Pair, Status, Version
from memlaw.ledger.status import status
from memlaw.ledger.store import Store
from memlaw.report.paths import without_paths


@dataclass(frozen=True, kw_only=True)
class Column:
    """A version, and how it was measured last."""

    version: Version
    audit: Audit | None = None
    """Its own adapter, measured again: the page shows this in place of what was measured when it was made."""
    served: Audit | None = None
    """Another adapter, measured in its place."""

    @property
    def measured(self) -> Version | Audit:
        return self.audit or self.version

    @property
    def side_effects(self) -> SideEffects | None:
        again = None if self.audit is None else self.audit.side_effects
        return again or self.version.side_effects

    @property
    def rounding(self) -> float | None:
        return self.measured.rounding


@dataclass(frozen=True, kw_only=True)
class LedgerContent:
    """All that a page shows of a ledger."""

    name: str
    now: Status
    columns: tuple[Column, ...]
    """The versions that led to the current one, without version 0, which holds nothing."""
    aside: tuple[int, ...] = ()
    """Other versions: rolled back, or never current."""
    made: Mapping[str, str]
    """Label -> value: what all versions share."""
    texts: Mapping[Pair, Fact] | None = None
    """The facts as text; None unless they are to be shown."""

    @property
    def matrix(self) -> Matrix:
        """Margins of every fact under every version."""
        return matrix([column.measured for column in self.columns])


def collect_ledger(ledger: str | os.PathLike[str], *, show_text: bool = False) -> LedgerContent:
    """Everything a page can show of the ledger in a directory, named without the folders of this machine.

    Raises LedgerError if there is no ledger or a version that led to the current one is damaged; ConfigError for
    `show_text` of a ledger that keeps no texts.
    """
    store = Store(ledger)
    settings, root = store.settings(), Path(ledger).resolve()
    if show_text and not settings.texts:
        raise ConfigError(
            f"The page is to show texts, but {ledger} keeps none (--no-text). Leave out --show-text: facts are named "
            "by their ids."
        )
    line, now = store.lineage(), status(store)
    shared = {
        "model": settings.model,
        "placement": settings.placement,
        "fingerprint of the model": settings.base[:16],
        "memlaw": installed_version(),
    }
    return LedgerContent(
        name=root.name,
        now=Status(**{**vars(now), "advice": without_paths(now.advice, root.parent)}),
        columns=tuple(_column(store, number, root) for number in line if number),
        aside=tuple(number for number in store.numbers() if number not in line),
        made=without_paths(shared, root),
        texts=store.texts(store.head()).every() if show_text else None,
    )


def _column(store: Store, number: int, root: Path) -> Column:
    version, audit = store.version(number), store.audit(number)
    if audit is None or not audit.adapter:
        return Column(version=version, audit=audit)
    name = without_paths(audit.adapter, root)
    return Column(version=version, served=Audit(**{**vars(audit), "adapter": name}))
