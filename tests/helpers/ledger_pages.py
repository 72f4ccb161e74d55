"""Ledgers made from records, without training, for pages of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers.ledgers import KEY, a_ledger, an_adapter, held_by, some_facts
from helpers.sample import EFFECTS
from memlaw.core.facts import Fact
from memlaw.ledger.diff import difference
from memlaw.ledger.records import Effort, Held, Room, Version, drop
from memlaw.ledger.store import Store

Margin = Callable[[str, int], float]
"""Id of a fact and number of a version -> its margin; from 0 down it is lost."""


def published(
    store: Store, facts: Sequence[Fact], retract: Sequence[str] = (), *, margin: Margin, rounding: float | None = 0.004
) -> Version:
    """The next version, with these margins and with all that a training would have recorded."""
    head, number = store.head(), store.next_number()
    diff = difference(head, facts, retract, KEY)
    held = tuple(
        _measured(fact, margin(fact.id, number)) for fact in (*diff.unchanged, *held_by(diff.to_train, number))
    )
    lost = [fact.id for fact in held if fact.verdict == "lost"]
    tokens = sum(fact.tokens for fact in held)
    version = Version(
        number=number, parent=head.number, held=held,
        retracted=diff.forbidden + tuple(drop(old, number, log_p=-20.0, log_p_base=-21.5) for old in diff.dropped),
        change=diff.change(lost), rank=4, created=f"2026-11-{1 + number % 28:02d}T12:00:00+00:00",
        effort=Effort(79, 8484, 4.0, 4.304, 0.3029) if diff.to_train else None,
        side_effects=dataclasses.replace(EFFECTS, loss_difference=0.002 * number),
        room=Room(max(0, 4000 - tokens), max(0, 2500 - tokens), None if number % 5 == 0 else max(0, 6000 - tokens)),
        rounding=rounding,
    )  # fmt: skip
    return store.publish(version, adapter=an_adapter(), texts=diff.to_train)


def _measured(fact: Held, margin: float) -> Held:
    verdict = "lost" if margin <= 0 else "ordered" if margin < 0.004 else "certified"
    return dataclasses.replace(fact, margin=margin, verdict=verdict)


def random_margin(name: str, number: int) -> float:
    """The same for the same fact and version: mostly certified, some at risk, few lost."""
    draw = random.Random(f"{name} {number}")
    chance = draw.random()
    return -0.2 * draw.random() if chance < 0.004 else 0.003 if chance < 0.02 else draw.uniform(0.05, 0.65)


def a_story(root: Path, name: str = "door-a") -> Store:
    """Four versions of four facts, of which `name` is stored, changed, lost, and comes back; another is retracted."""
    margins = {(name, 3): -0.1, (name, 4): 0.3, ("price", 2): 0.003, ("notice", 4): 0.05}
    store = a_ledger(root)
    for facts, retract in (
        (some_facts(name, "door-b", "price"), []),
        ((*some_facts(name, value="!"), *some_facts("notice")), ["door-b"]),
        (some_facts("seal"), []),
        (some_facts("seal", value="?"), []),
    ):
        published(store, facts, retract, margin=lambda fact, number: margins.get((fact, number), 0.4))
    return store


def a_large_ledger(root: Path, facts: int, versions: int) -> Store:
    """So many facts in so many versions, with changes and retractions mixed in."""
    store, each = a_ledger(root), facts // versions
    for number in range(1, versions + 1):
        new = some_facts(*(f"fact-{number:02d}-{k:03d}" for k in range(each)))
        held = [fact.id for fact in store.head().held]
        changed = some_facts(*held[number::97], value=f" {number}") if number > 1 else ()
        retract = [one for one in held[number + 5 :: 193] if one not in {fact.id for fact in changed}]
        published(store, (*new, *changed), retract, margin=random_margin)
    return store
