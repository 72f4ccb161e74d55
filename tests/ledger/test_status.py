from __future__ import annotations

import dataclasses

import pytest

from helpers.ledgers import a_ledger, held_by, some_facts, update
from memlaw.core.errors import LedgerError
from memlaw.ledger.records import Held, Room, Status
from memlaw.ledger.status import status
from memlaw.ledger.store import Store


@pytest.fixture
def store(tmp_path):
    made = a_ledger(tmp_path / "KB")
    update(made, some_facts("a", "b", "c"))
    update(made, some_facts("b", value="!"), ["c"])
    return made


def publish(store: Store, *held: Held, **changes) -> Status:
    """The status after a version that holds these facts, all of them older ones; `changes` are of its adapter."""
    head, number = store.head(), store.next_number()
    adapters = (dataclasses.replace(head.adapters[0], **changes),)
    store.publish(
        dataclasses.replace(head, number=number, parent=head.number, held=held, retracted=(), adapters=adapters)
    )
    return status(store)


def test_the_facts_of_the_current_version_are_counted(store):
    assert status(store) == Status(
        version=2, facts=2, certified=2, at_risk=0, lost=0, retracted=2, tokens=6, rank=4, adapters=1, versions=3,
        room=None, side_effects=None, advice="Every fact comes back. Nothing to do.",
    )  # fmt: skip


def test_an_empty_ledger_asks_for_facts(tmp_path):
    made = a_ledger(tmp_path / "KB")
    assert status(made).advice == f"Store facts: memlaw ledger update {made.root} FACTS."


def test_facts_of_a_thin_margin_are_at_risk_by_the_measured_rounding_or_that_of_bfloat16(store):
    thin, thick = held_by(some_facts("a"), 1, margin=0.02), held_by(some_facts("b"), 1, margin=0.03)
    assert publish(store, *thin, *thick).at_risk == 1
    assert publish(store, *thin, *thick, rounding=1e-4).at_risk == 0
    result = publish(store, *thin, *thick, rounding=0.1)
    assert (result.at_risk, result.certified) == (2, 2)
    assert result.advice.startswith("2 facts come back by a margin that rounding may undo.")


def test_lost_facts_are_counted_apart_and_come_first_in_the_advice(store):
    lost, held = held_by(some_facts("a"), 1, margin=-1.0, verdict="lost"), held_by(some_facts("b"), 1)
    result = publish(store, *lost, *held, room=Room(0, -9, None))
    assert (result.facts, result.certified, result.lost, result.tokens, result.at_risk) == (2, 1, 1, 3, 0)
    assert result.advice.startswith("1 of 2 facts do not come back.")


def test_a_ledger_that_is_full_says_so(store):
    room = Room(10, -5, 40)
    result = publish(store, *held_by(some_facts("a"), 1), room=room)
    assert (result.room, result.advice[:30]) == (room, "The next update may not fit. U")
    assert "with a --rank above 4, or retract" in result.advice


def test_a_damaged_ledger_has_no_status(store):
    (store.root / "HEAD").write_bytes(b"")
    with pytest.raises(LedgerError, match="HEAD is damaged"):
        status(store)
