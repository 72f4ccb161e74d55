"""A ledger in a few numbers, and what to do next."""

from __future__ import annotations

from memlaw.ledger.records import Status, Version
from memlaw.ledger.store import Store


def status(store: Store) -> Status:
    """The current version in numbers. Raises LedgerError if the ledger is damaged."""
    version = store.head()
    verdicts = [fact.verdict for fact in version.held]
    lost, at_risk = verdicts.count("lost"), len(version.at_risk())
    return Status(
        version=version.number,
        facts=len(verdicts),
        certified=verdicts.count("certified"),
        at_risk=at_risk,
        lost=lost,
        retracted=len(version.retracted),
        tokens=version.tokens,
        rank=version.rank,
        adapters=len(version.adapters),
        versions=len(store.numbers()),
        room=version.room,
        side_effects=version.side_effects,
        advice=_advice(store, version, lost, at_risk),
    )


def _advice(store: Store, version: Version, lost: int, at_risk: int) -> str:
    if not version.held:
        return f"Store facts: memlaw ledger update {store.root} FACTS."
    if lost:
        return f"{lost} of {len(version.held)} facts do not come back. Give them room: update with a higher --rank."
    if version.room is not None and version.room.low <= 0:
        return (
            f"The next update may not fit. Update with a --rank above {version.rank}, or retract what is no longer "
            "needed."
        )
    if at_risk:
        return (
            f"{at_risk} facts come back by a margin that rounding may undo. The next update rehearses "
            "them; before serving in a lower precision, audit the adapter as it is served."
        )
    return "Every fact comes back. Nothing to do."
