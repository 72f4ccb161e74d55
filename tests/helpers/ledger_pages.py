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
from memlaw.ledger.records import Adapter, Change, Effort, Held, Room, Status, Version, drop
from memlaw.ledger.store import Store
from memlaw.report.ledger import Column, LedgerContent

Margin = Callable[[str, int], float]
"""Id of a fact and number of a version -> its margin; from 0 down it is lost."""

ROUNDING = 0.004

EMPTY = Version(0, None, (), (), Change(), 4, "2026-11-01T12:00:00+00:00")


def version_after(head: Version, facts: Sequence[Fact], retract: Sequence[str], margin: Margin) -> Version:
    """The version that an update would make, with these margins and with all that a training records."""
    number, diff = head.number + 1, difference(head, facts, retract, KEY)
    every = (*diff.unchanged, *held_by(diff.to_train, number))
    held = tuple(_measured(fact, margin(fact.id, number)) for fact in every)
    tokens = sum(fact.tokens for fact in held)
    return Version(
        number=number, parent=head.number, held=held,
        retracted=diff.forbidden + tuple(drop(old, number, log_p=-20.0, log_p_base=-21.5) for old in diff.dropped),
        change=diff.change(fact.id for fact in held if fact.verdict == "lost"), rank=4,
        created=f"2026-11-{1 + number % 28:02d}T12:00:00+00:00", effort=Effort(79, 8484, 4.0, 4.304, 0.3029),
        adapters=(_adapter(number, tokens),),
    )  # fmt: skip


def _adapter(version: int, tokens: int) -> Adapter:
    room = Room(max(0, 4000 - tokens), max(0, 2500 - tokens), None if version % 5 == 0 else max(0, 6000 - tokens))
    effects = dataclasses.replace(EFFECTS, loss_difference=0.002 * version)
    return Adapter(1, 4, version, tokens, side_effects=effects, room=room, rounding=ROUNDING)


def _measured(fact: Held, margin: float) -> Held:
    verdict = "lost" if margin <= 0 else "ordered" if margin < ROUNDING else "certified"
    return dataclasses.replace(fact, margin=margin, verdict=verdict)


def a_story(root: Path, name: str = "door-a", **settings: bool) -> Store:
    """Four versions of five facts: `name` is stored, changed, lost, and comes back; door-b is retracted; price was at
    risk; notice falls from 0.4 to 0.05 nats; seal is changed."""
    margins = {(name, 3): -0.1, (name, 4): 0.3, ("price", 2): 0.003, ("notice", 4): 0.05}
    store = a_ledger(root, **settings)
    for facts, retract in (
        (some_facts(name, "door-b", "price"), []),
        ((*some_facts(name, value="!"), *some_facts("notice")), ["door-b"]),
        (some_facts("seal"), []),
        (some_facts("seal", value="?"), []),
    ):
        version = version_after(store.head(), facts, retract, lambda fact, number: margins.get((fact, number), 0.4))
        texts = [fact for fact in facts if fact.id in (*version.change.added, *version.change.changed)]
        store.publish(version, trained={1: an_adapter()}, texts=texts)
    return store


def a_large_content(facts: int, versions: int) -> LedgerContent:
    """So many facts that came in so many versions, with changes and retractions mixed in; no file is written."""
    line, each = [EMPTY], facts // versions
    for number in range(1, versions + 1):
        new = some_facts(*(f"fact-{number:02d}-{k:03d}" for k in range(each)))
        held = [fact.id for fact in line[-1].held]
        changed = some_facts(*held[number::97], value=f" {number}") if number > 1 else ()
        retract = sorted(set(held[number + 5 :: 193]) - {fact.id for fact in changed})
        line.append(version_after(line[-1], (*new, *changed), retract, _random_margin))
    return LedgerContent(
        name="large", now=_status(line[-1]), columns=tuple(Column(version=one) for one in line[1:]), made={}
    )


def _random_margin(name: str, number: int) -> float:
    """The same for the same fact and version: mostly certified, some at risk, few lost."""
    draw = random.Random(f"{name} {number}")
    chance = draw.random()
    return -0.2 * draw.random() if chance < 0.004 else 0.003 if chance < 0.02 else draw.uniform(0.05, 0.65)


def _status(version: Version) -> Status:
    verdicts = [fact.verdict for fact in version.held]
    return Status(
        version=version.number, facts=len(verdicts), certified=verdicts.count("certified"),
        at_risk=len(version.at_risk()), lost=verdicts.count("lost"), retracted=len(version.retracted),
        tokens=version.tokens, rank=version.rank, adapters=len(version.adapters), versions=version.number + 1,
        room=version.room, side_effects=version.side_effects, advice="Every fact comes back. Nothing to do.",
    )  # fmt: skip
