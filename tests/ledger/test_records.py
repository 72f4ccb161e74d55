from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from helpers.ledgers import KEY, SETTINGS, held_by, some_facts
from memlaw.core.canonical import to_dict
from memlaw.core.facts import Fact
from memlaw.core.side_effects import SideEffects
from memlaw.ledger.records import (
    Adapter,
    Change,
    Effort,
    Room,
    Settings,
    Version,
    drop,
    duplicates,
    from_dict,
    hold,
    pair_of,
    prompt_hash,
    target_hash,
)

EFFECTS = SideEffects(0.01, 3.2, 0.02, 0.99, 2000, {"prose": 0.01}, 0.0, 64, 0.0)


def test_a_version_with_everything_reads_back_as_it_was():
    facts = held_by(some_facts("a", "b"), 3)
    old = drop(facts[0], 4, log_p=-20.5, log_p_base=-30.25)
    version = Version(
        4, 3, (facts[1],), (old,), Change(("b",), (), ("a",), ()), 8, "now", Effort(9, 70, 0.5, 2.0, None),
        (Adapter(1, 8, 4, 3, 0.1, 5.0, EFFECTS, Room(100.0, 50.0, None), 1e-6), Adapter(2, 4, 3, 0)),
    )  # fmt: skip
    assert from_dict(Version, to_dict(version)) == version
    assert from_dict(Settings, to_dict(SETTINGS)) == SETTINGS
    assert (old.pair, old.since, old.until) == (facts[0].pair, 3, 4)


@pytest.mark.parametrize(
    "change", [{"verdict": "good"}, {"margin": "0.1"}, {"tokens": 1.5}, {"mood": 1}, {"margin": None}]
)
def test_values_of_another_version_are_refused(change):
    body = to_dict(held_by(some_facts("a"), 1)[0])
    with pytest.raises(ValidationError):
        from_dict(type(held_by(some_facts("a"), 1)[0]), body | change)


def test_unknown_fields_are_refused_in_every_record():
    facts = held_by(some_facts("a"), 3)
    old = drop(facts[0], 4, log_p=-20.5, log_p_base=-30.25)
    for record in (SETTINGS, facts[0], old, Change(), Effort(9, 70, 0.5, 2.0, None), Room(100.0, 50.0, None)):
        assert from_dict(type(record), to_dict(record)) == record
        with pytest.raises(ValidationError, match="later"):
            from_dict(type(record), to_dict(record) | {"later": 1})


@given(st.text(), st.text(), st.text())
def test_hashes_are_equal_only_for_equal_texts_under_the_same_key(prompt, other, target):
    assert (prompt_hash(prompt, KEY) == prompt_hash(other, KEY)) == (prompt == other)
    one, two = Fact(prompt, target, "1"), Fact(other, target, "2", 7)
    assert target_hash(one, KEY) == target_hash(two, KEY)
    assert (pair_of(one, KEY) == pair_of(two, KEY)) == (prompt == other)
    assert prompt_hash(prompt, KEY) != prompt_hash(prompt, "00" * 32)
    assert len(prompt_hash(prompt, KEY)) == 32


def test_exact_tokens_and_the_end_of_an_answer_belong_to_the_target():
    fact = Fact("p", "t", "1")
    others = [dataclasses.replace(fact, end="<end>"), dataclasses.replace(fact, target_ids=(1,)), Fact("p", "t2", "1")]
    assert len({target_hash(one, KEY) for one in [fact, *others]}) == 4


def test_a_held_fact_has_the_hashes_of_its_texts_and_no_text():
    [fact] = some_facts("a")
    held = hold(fact, KEY, tokens=3, margin=0.2, verdict="ordered", since=5)
    assert held.pair == pair_of(fact, KEY)
    assert fact.target not in str(to_dict(held))


def test_the_key_is_not_printed_with_the_settings():
    assert KEY not in repr(SETTINGS)


def test_duplicates_are_the_values_that_occur_more_than_once():
    assert duplicates("abcabx") == {"a", "b"}
    assert duplicates([]) == set()
