"""An update shared out among the adapters of a version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.ledgers import KEY, held_by, some_facts
from memlaw.ledger.diff import difference
from memlaw.ledger.jobs import jobs, last_number, opened
from memlaw.ledger.records import Adapter, Change, Held, Version, drop

FIRST, SECOND = some_facts("a", "b"), some_facts("c", "d")


@pytest.fixture
def version() -> Version:
    """Two adapters of two facts, and a target that was dropped from each, and from one that is no more."""
    held = [replace(fact, adapter=number) for number, facts in ((1, FIRST), (3, SECOND)) for fact in held_by(facts, 1)]
    gone = [replace(drop(old, 1, log_p=-9.0, log_p_base=-9.0), adapter=number) for old, number in _gone()]
    adapters = (Adapter(1, 4, 1, tokens=6), Adapter(3, 8, 1, tokens=6))
    return Version(1, 0, tuple(held), tuple(gone), Change(), 8, "now", adapters=adapters)


def _gone() -> list[tuple[Held, int]]:
    return list(zip(held_by(some_facts("x", "y", "z"), 0), (1, 2, 3), strict=True))


def test_what_is_new_goes_to_the_last_adapter_and_the_others_are_left_alone(version: Version) -> None:
    first, last = jobs(version, difference(version, some_facts("e"), [], KEY), 8)
    assert (first.number, first.rank, first.before, first.idle) == (1, 4, version.adapters[0], True)
    assert (last.number, last.rank, last.before, last.idle) == (3, 8, version.adapters[1], False)
    assert [fact.id for fact in last.diff.new] == ["e"]
    assert [fact.id for fact in last.diff.unchanged] == ["c", "d"]
    assert [[old.id for old in job.diff.forbidden] for job in (first, last)] == [["x"], ["z"]]
    assert not last.holds_nothing_else


def test_a_fact_changes_and_goes_where_it_is(version: Version) -> None:
    diff = difference(version, some_facts("a", value="!"), ["d"], KEY)
    first, last = jobs(version, diff, 8)
    assert ([fact.id for fact in first.diff.changed], [old.id for old in first.diff.replaced]) == (["a"], ["a"])
    assert (first.diff.retracted, [old.id for old in last.diff.retracted]) == ((), ["d"])
    assert not first.idle
    assert not last.idle
    whole = [(*job.diff.unchanged, *job.diff.dropped) for job in (first, last)]
    assert sorted(fact.id for part in whole for fact in part) == ["a", "b", "c", "d"]


def test_a_higher_rank_is_for_the_last_adapter(version: Version) -> None:
    first, last = jobs(version, difference(version, [], [], KEY), 16)
    assert (first.rank, first.idle, last.rank, last.idle) == (4, True, 16, False)


def test_facts_that_are_lost_are_tried_again(version: Version) -> None:
    lost = replace(version, held=(replace(version.held[0], verdict="lost"), *version.held[1:]))
    first, last = jobs(lost, difference(lost, [], [], KEY), 8)
    assert (first.idle, last.idle) == (False, True)


def test_a_version_without_adapters_gets_its_first() -> None:
    empty = Version(0, None, (), (), Change(), 4, "now")
    (job,) = jobs(empty, difference(empty, FIRST, [], KEY), 4)
    assert (job.number, job.rank, job.before, job.idle, job.holds_nothing_else) == (1, 4, None, False, True)
    assert last_number(empty) == 1


def test_new_facts_may_be_given_to_another_adapter(version: Version) -> None:
    (_, last) = jobs(version, difference(version, some_facts("e"), [], KEY), 8)
    assert last.with_new(()).idle
    job = opened(4, 8, last.diff.new)
    assert (job.before, job.holds_nothing_else, job.idle, job.diff.new) == (None, True, False, last.diff.new)
