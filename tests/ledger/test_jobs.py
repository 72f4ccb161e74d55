"""An update shared out among the adapters of a version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from helpers.ledgers import KEY, held_by, some_facts
from memlaw.core.facts import Fact
from memlaw.ledger.diff import difference
from memlaw.ledger.jobs import Job, Sharing
from memlaw.ledger.records import Adapter, Change, Held, Retracted, Version, drop

FIRST, SECOND = some_facts("a", "b"), some_facts("c", "d")


@pytest.fixture
def version() -> Version:
    """Two adapters of two facts, and a target that was dropped from each, and from one that is no more."""
    held = [replace(fact, adapter=number) for number, facts in ((1, FIRST), (3, SECOND)) for fact in held_by(facts, 1)]
    gone = [dropped(held_by(some_facts(name), 0)[0], number) for name, number in (("x", 1), ("y", 2), ("z", 3))]
    adapters = (Adapter(1, 4, 1, tokens=6), Adapter(3, 8, 1, 6))
    return Version(1, 0, tuple(held), tuple(gone), Change(), 8, "now", adapters=adapters)


def dropped(held: Held, adapter: int) -> Retracted:
    return replace(drop(held, 1, log_p=-9.0, log_p_base=-9.0), adapter=adapter)


def jobs(version: Version, facts: Sequence[Fact] = (), retract: Sequence[str] = (), rank: int = 8) -> list[Job]:
    sharing = Sharing(version, difference(version, facts, retract, KEY), KEY, rank)
    return [sharing.job(number) for number in sharing.numbers()]


def ids(records: Sequence[Fact | Held | Retracted]) -> list[str]:
    return [record.id for record in records]


def test_what_is_new_goes_to_the_last_adapter_and_the_others_are_left_alone(version: Version) -> None:
    first, last = jobs(version, some_facts("e"))
    assert (first.number, first.rank, first.before, first.idle) == (1, 4, version.adapters[0], True)
    assert (last.number, last.rank, last.before, last.idle) == (3, 8, version.adapters[1], False)
    assert (ids(last.train), ids(last.kept), ids(last.dropped)) == (["e"], ["c", "d"], [])
    assert [ids(job.forbidden) for job in (first, last)] == [["x"], ["z"]]


def test_a_changed_fact_goes_to_the_last_adapter_which_must_not_give_its_old_target(version: Version) -> None:
    first, last = jobs(version, some_facts("a", value="!"))
    assert (first.idle, ids(first.kept), first.dropped) == (True, ["b"], ())
    assert (ids(last.train), ids(last.kept), ids(last.dropped)) == (["a"], ["c", "d"], ["a"])


def test_a_fact_is_retracted_from_the_adapter_that_holds_it(version: Version) -> None:
    first, last = jobs(version, retract=["a"])
    assert (ids(first.kept), ids(first.dropped), first.idle, last.idle) == (["b"], ["a"], False, True)


def test_an_old_target_elsewhere_is_trained_away_once_its_fact_is_retracted(version: Version) -> None:
    old = dropped(held_by(some_facts("a"), 0)[0], 1)
    (moved,) = held_by(some_facts("a", value="!"), 2)
    changed = replace(
        version,
        held=(version.held[1], *version.held[2:], replace(moved, adapter=3)),
        retracted=(*version.retracted, old),
    )
    assert (changed.asked_of(old), changed.asked()) == (3, (1, 2, 3))
    first, last = jobs(changed, some_facts("e"))
    assert (ids(first.forbidden), first.idle, ids(last.forbidden)) == (["x"], True, ["z", "a"])
    first, last = jobs(changed, retract=["a"])
    assert (ids(first.forbidden), first.idle) == (["x", "a"], False)
    assert (ids(last.forbidden), ids(last.dropped)) == (["z"], ["a"])


def test_a_higher_rank_is_for_the_last_adapter(version: Version) -> None:
    first, last = jobs(version, rank=16)
    assert (first.rank, first.idle, last.rank, last.idle) == (4, True, 16, False)


def test_facts_that_are_lost_are_tried_again(version: Version) -> None:
    lost = replace(version, held=(replace(version.held[0], verdict="lost"), *version.held[1:]))
    first, last = jobs(lost)
    assert (first.idle, last.idle) == (False, True)


def test_a_version_without_adapters_gets_its_first() -> None:
    empty = Version(0, None, (), (), Change(), 4, "now")
    (job,) = jobs(empty, FIRST, rank=4)
    assert (job.number, job.rank, job.before, job.idle, ids(job.train)) == (1, 4, None, False, ["a", "b"])


def test_what_does_not_fit_goes_to_a_new_adapter_and_half_of_it_to_another(version: Version) -> None:
    facts = (*some_facts("e", "f", "g"), *some_facts("d", value="!"))
    sharing = Sharing(version, difference(version, facts, [], KEY), KEY, 8)
    assert sharing.spread(sharing.job(3)) == (3, 4)
    rest, new = sharing.job(3), sharing.job(4)
    assert (rest.idle, ids(rest.kept), rest.dropped) == (True, ["c"], ())
    assert (new.before, new.rank, ids(new.train), ids(new.dropped)) == (None, 8, ["e", "f", "g", "d"], ["d"])
    assert sharing.spread(new) == (4, 5)
    assert [ids(sharing.job(number).train) for number in (3, 4, 5)] == [[], ["e", "f"], ["g", "d"]]
    assert [ids(sharing.job(number).dropped) for number in (4, 5)] == [[], ["d"]]


def test_another_adapter_could_take_what_is_new_but_not_the_only_fact_of_a_new_one(version: Version) -> None:
    sharing = Sharing(version, difference(version, some_facts("e"), [], KEY), KEY, 8)
    first, last = sharing.job(1), sharing.last_job()
    assert (first.divisible, last.divisible, last.tokens_kept) == (False, True, 6)
    _, new = sharing.spread(last)
    assert not sharing.job(new).divisible


def test_an_adapter_may_grow_for_what_it_has_to_learn(version: Version) -> None:
    sharing = Sharing(version, difference(version, some_facts("e"), [], KEY), KEY, 8)
    grown = sharing.grow(sharing.last_job(), 16)
    assert grown == replace(sharing.job(3), rank=16) == sharing.last_job()
    assert sharing.job(1).rank == 4
