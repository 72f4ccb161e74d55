"""A lineage of versions reviewed: which fact came back under which version, and what updates cost older facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memlaw.ledger.audit import Forgetting, Loss, Matrix, forgetting, largest_drops, losses, matrix
from memlaw.ledger.records import Audit
from memlaw.ledger.store import Store


@dataclass(frozen=True)
class Review:
    """What the versions of a lineage hold, and what each cost the ones before."""

    matrix: Matrix
    """Margins of every fact under every version."""
    forgetting: Forgetting
    losses: tuple[Loss, ...]
    """Which update cost which fact."""
    drops: tuple[Loss, ...]
    """The facts whose margin fell most in one update."""


def review(store: Store, number: int | None = None, audits: Sequence[Audit] = ()) -> Review:
    """Review the versions that led to `number` (None: the current one), without version 0, which holds nothing.

    A version counts as one of `audits` found it, and otherwise as it was measured before it was published. Raises
    LedgerError if a version is damaged.
    """
    again = {audit.version: audit for audit in audits}
    line = [again.get(past) or store.version(past) for past in store.lineage(number) if past]
    table = matrix(line)
    return Review(table, forgetting(table), losses(table), largest_drops(table))
