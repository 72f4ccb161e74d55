"""What became of each fact: margins by fact and version, and what continual learning makes of them. Pure.

R[i, j] is the share of the facts of update j that come back under version i, of those that version i still should
hold: a fact that was changed or retracted meanwhile is not forgotten. Versions come in the order of a lineage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memlaw.ledger.records import Audit, Held, Version

Shares = Mapping[tuple[int, int], float]
"""(version i, update j) -> R[i, j], where version i holds facts of update j."""


@dataclass(frozen=True)
class FactName:
    """A target of a fact: it is another one once the target changes."""

    id: str
    prompt: str
    target: str
    since: int
    """The update that introduced it."""


@dataclass(frozen=True)
class Matrix:
    """Facts x versions. A cell is None where the version does not hold the fact."""

    facts: tuple[FactName, ...]
    """By the update that introduced them, then in the order of the first version that holds them."""
    versions: tuple[int, ...]
    margins: tuple[tuple[float | None, ...], ...]
    """Nats; a row for each fact."""
    right: tuple[tuple[bool | None, ...], ...]
    """Whether the fact comes back verbatim; a row for each fact."""


@dataclass(frozen=True)
class Loss:
    """A fact that came back under one version and not under the next."""

    fact: FactName
    by: int
    """The version that cost it."""
    margin_before: float
    margin_after: float
    regained: int | None
    """The next version under which it comes back; None if there is none."""


@dataclass(frozen=True)
class Forgetting:
    """A lineage in the terms of continual learning; T is its last version. None where there is nothing to compare."""

    accuracy: float | None
    """Share of the facts of version T that come back under it."""
    backward_transfer: float | None
    """Mean over the updates j < T of R[T, j] - R[j, j] (Lopez-Paz and Ranzato 2017); below 0, updates harmed older
    facts."""
    forgetting: float | None
    """Mean over the updates j < T of max over j <= l < T of R[l, j], minus R[T, j] (Chaudhry et al. 2018)."""


def matrix(measured: Sequence[Version | Audit]) -> Matrix:
    """The margins and successes of every fact in a lineage, one column for each version or audit given."""
    columns = [{_name(fact): fact for fact in one.held} for one in measured]
    order = dict.fromkeys(name for column in columns for name in column)
    facts = tuple(sorted(order, key=lambda name: name.since))
    rows = [[column.get(name) for column in columns] for name in facts]
    return Matrix(
        facts=facts,
        versions=tuple(one.number if isinstance(one, Version) else one.version for one in measured),
        margins=tuple(tuple(None if fact is None else fact.margin for fact in row) for row in rows),
        right=tuple(tuple(None if fact is None else fact.verdict != "lost" for fact in row) for row in rows),
    )


def shares(of: Matrix) -> dict[tuple[int, int], float]:
    """R: (version i, update j) -> the share of the facts of j, held under i, that come back under i."""
    held: dict[tuple[int, int], list[bool]] = {}
    for fact, row in zip(of.facts, of.right, strict=True):
        for version, right in zip(of.versions, row, strict=True):
            if right is not None:
                held.setdefault((version, fact.since), []).append(right)
    return {cell: sum(rights) / len(rights) for cell, rights in sorted(held.items())}


def forgetting(of: Matrix) -> Forgetting:
    """Accuracy, backward transfer and forgetting of the last version, as means over updates that both cells have."""
    if not of.versions:
        return Forgetting(None, None, None)
    table, last = shares(of), of.versions[-1]
    earlier = [j for j in of.versions[:-1] if (last, j) in table]
    transfers = [table[last, j] - table[j, j] for j in earlier if (j, j) in table]
    forgotten = [_best_before(table, of.versions, j) - table[last, j] for j in earlier]
    now = [row[-1] for row in of.right if row[-1] is not None]
    return Forgetting(
        accuracy=_mean(now),
        backward_transfer=_mean(transfers),
        forgetting=_mean([drop for drop in forgotten if not math.isnan(drop)]),
    )


def losses(of: Matrix) -> tuple[Loss, ...]:
    """Which update cost which fact, in the order of versions and facts. A fact may be lost more than once."""
    found = []
    for fact, margins, right in zip(of.facts, of.margins, of.right, strict=True):
        for place in range(1, len(of.versions)):
            before, after = margins[place - 1], margins[place]
            if before is not None and after is not None and right[place - 1] and not right[place]:
                regained = next((n for n, r in zip(of.versions[place:], right[place:], strict=True) if r), None)
                found.append(Loss(fact, of.versions[place], before, after, regained))
    return tuple(sorted(found, key=lambda loss: of.versions.index(loss.by)))


def largest_drops(of: Matrix, most: int = 10) -> tuple[Loss, ...]:
    """The facts of the last version whose margin fell most in one update, the largest fall first.

    `by` is that update, and `regained` is None: these facts may still come back.
    """
    drops = []
    for fact, margins in zip(of.facts, of.margins, strict=True):
        steps = [
            (after - before, of.versions[place], before, after)
            for place, (before, after) in enumerate(itertools.pairwise(margins), start=1)
            if before is not None and after is not None
        ]
        if steps and margins[-1] is not None and min(steps)[0] < 0:
            _, by, before, after = min(steps)
            drops.append(Loss(fact, by, before, after, None))
    return tuple(sorted(drops, key=lambda loss: loss.margin_after - loss.margin_before)[:most])


def _name(fact: Held) -> FactName:
    return FactName(fact.id, fact.prompt, fact.target, fact.since)


def _best_before(table: Shares, versions: Sequence[int], update: int) -> float:
    """max over i < T of R[i, update]; nan if no version before the last holds facts of the update."""
    return max((table[i, update] for i in versions[:-1] if (i, update) in table), default=math.nan)


def _mean(values: Iterable[float]) -> float | None:
    every = list(values)
    return sum(every) / len(every) if every else None
