from __future__ import annotations

import pytest

from memlaw.ledger.records import Effort, Room
from memlaw.ledger.sentences import changes, facts_held, room_left, what_it_took


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((0, 0, 0), "no facts"),
        ((1, 1, 0), "1 fact, certified"),
        ((1, 0, 1), "1 fact, 0 certified, 1 lost"),
        ((1200, 1200, 0), "1,200 facts, all certified"),
        ((5, 3, 1), "5 facts, 3 certified, 1 lost"),
    ],
)
def test_facts_are_counted_by_how_they_stand(counts, sentence):
    assert facts_held(*counts) == sentence


def test_changes_leave_out_what_did_not_happen():
    assert changes(1, 0, 2) == "1 added, 2 retracted"
    assert changes(0, 0, 0) == ""


def test_effort_names_losses_only_if_something_was_trained():
    trained = Effort(1, 8484, 4.2, 4.304, 0.3029)
    assert what_it_took(trained) == "1 step in 4 s, 8,484 tokens forwarded, loss 4.304 -> 0.3029 nats per token."
    assert what_it_took(Effort(2, 10, 0.0, None, None)) == "2 steps in 0 s, 10 tokens forwarded."


def test_room_without_an_upper_end_is_open():
    assert room_left(Room(1240.4, 900, 1700)) == "about 1,240 target tokens like these (95%: 900 to 1,700)"
    assert room_left(Room(10, 5, None)) == "about 10 target tokens like these (95%: 5 or more)"
