"""Tests of ledger/forecast.py: what ranks hold, on a tiny model and by the published law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import tiny
from helpers.sample import EFFECTS
from memlaw.adapter.on_model import placement_on
from memlaw.core.errors import ConfigError, FitError
from memlaw.ledger.forecast import (
    Forecaster,
    Grow,
    Open,
    Seen,
    cheaper,
    check_asked,
    check_rank,
    codes,
    seen_by,
    sized,
    smallest,
)
from memlaw.ledger.measured import bench
from memlaw.ledger.records import Adapter
from memlaw.planning.library import KnownLaw, PlanContext, default_law, nearest

BASE = tiny.base()
WHERE = placement_on("down_proj@2", BASE.model)
MOST = WHERE.max_rank
ON = bench(BASE, codes(8), (), True, harm=False).wanted
PUBLISHED = partial(nearest, ())


def forecaster(seen: Seen | None = None) -> Forecaster:
    return Forecaster(BASE, ON, WHERE, PUBLISHED, seen)


ALONE = forecaster()
ranks = st.integers(1, MOST)
tokens = st.floats(1.0, 1e4)


def told(of: Forecaster, rank: int, wanted: float) -> float:
    chance = of.chance(rank, wanted)
    assert chance is not None
    return chance


@given(lower=ranks, higher=ranks, fewer=tokens, more=tokens)
def test_a_higher_rank_and_fewer_tokens_are_never_less_likely_to_fit(
    lower: int, higher: int, fewer: float, more: float
) -> None:
    lower, higher = sorted((lower, higher))
    fewer, more = sorted((fewer, more))
    assert told(ALONE, higher, more) >= told(ALONE, lower, more) - 1e-3  # the intervals of a law end at draws
    assert told(ALONE, lower, fewer) >= told(ALONE, lower, more)


@pytest.mark.parametrize("wanted", [3.0, 8.0, 20.0, 60.0, 150.0, 400.0])
@pytest.mark.parametrize("chance", [0.5, 0.95])
def test_the_rank_for_tokens_is_the_smallest(wanted: float, chance: float) -> None:
    enough = [rank for rank in range(1, MOST + 1) if told(ALONE, rank, wanted) >= chance]
    assert ALONE.rank_for(wanted, MOST, chance) == (enough[0] if enough else None)


@given(first=st.integers(1, 300), most=st.integers(0, 300))
def test_bisection_finds_the_first_that_is_enough(first: int, most: int) -> None:
    assert smallest(lambda rank: rank >= first, most) == (first if first <= most else None)


def test_a_rank_holds_what_a_lower_one_held_and_not_what_a_higher_one_refused() -> None:
    seen = forecaster(Seen(held=((4, 50.0),), refused=((8, 90.0),)))
    assert [told(seen, rank, 50.0) == 1 for rank in (2, 4, 8)] == [False, True, True]
    assert [told(seen, rank, 90.0) == 0 for rank in (4, 8, 9)] == [True, True, False]
    room = seen.room(4, 50.0)
    assert room is not None
    assert room.high is not None
    assert 0 <= room.low <= room.tokens <= room.high <= 40.0


def test_what_the_adapter_costs_the_model_limits_what_it_holds() -> None:
    free, near = (forecaster(Seen(cost=(8, 30.0, harm), max_harm=0.1)) for harm in (0.0, 0.09))
    assert told(near, 8, 60.0) < told(free, 8, 60.0) <= told(ALONE, 8, 60.0)
    assert told(near, MOST, 60.0) > told(near, 8, 60.0)
    unbounded = forecaster(Seen(cost=(8, 30.0, 5.0)))
    assert told(unbounded, 8, 60.0) == told(ALONE, 8, 60.0)


def cannot_be_used(_: PlanContext) -> KnownLaw:
    raise FitError("The law does not apply.")


@pytest.mark.parametrize(
    "unknown",
    [
        Forecaster(BASE, ON, WHERE, None),
        Forecaster(BASE, (), WHERE, PUBLISHED),
        Forecaster(BASE, ON, WHERE, cannot_be_used),
    ],
)
def test_without_a_law_that_can_be_used_nothing_is_known(unknown: Forecaster) -> None:
    found: Sequence[object] = (
        unknown.belief(4),
        unknown.chance(4, 10.0),
        unknown.room(4, 10.0),
        unknown.rank_for(10.0, MOST),
        unknown.expected(4, 10),
    )
    assert found == (None,) * 5
    assert cheaper(unknown, 4, 100.0, 10.0, MOST) == Open(4)


def test_the_base_runs_once_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    from memlaw.diagnosis import measure

    counts = []
    real = measure.measure
    monkeypatch.setattr(
        measure, "measure", lambda *given, **named: counts.append(len(given[1])) or real(*given, **named)
    )
    of = Forecaster(BASE, ON * 100, WHERE, PUBLISHED)
    assert (of.chance(2, 10.0), of.rank_for(20.0, MOST)) != (None, None)
    assert len(counts) == 1
    assert counts[0] <= 256


@given(rank=ranks, held=tokens, new=tokens)
def test_the_cheaper_way_adds_the_fewest_parameters(rank: int, held: float, new: float) -> None:
    grown, opened = ALONE.rank_for(held + new, MOST), ALONE.rank_for(new, MOST)
    found = cheaper(ALONE, rank, held, new, MOST)
    added = [max(grown - rank, 0)] if grown is not None else []
    added += [opened] if opened is not None else []
    if isinstance(found, Grow):
        assert found.rank - rank == min(added)
    elif isinstance(found, Open):
        assert found.rank == min(added)
        assert grown is None or grown - rank > found.rank  # a tie goes to growing
    else:
        assert not added


def test_adapters_show_what_they_hold_and_the_one_that_is_to_take_more_what_it_costs() -> None:
    adapter = Adapter(2, 16, 3, tokens=70, side_effects=replace(EFFECTS, loss_difference=0.02))
    fitted = [(8, 30), (16, 70)]
    assert seen_by(fitted, None) == Seen(held=((8, 30), (16, 70)))
    assert seen_by(fitted, adapter, 0.1) == Seen(held=((8, 30), (16, 70)), cost=(16, 70.0, 0.02), max_harm=0.1)
    for nothing in (replace(adapter, tokens=0), replace(adapter, side_effects=None)):
        assert seen_by(fitted, nothing, 0.1).cost is None


def test_by_its_harm_alone_an_adapter_is_full_before_it_has_a_law() -> None:
    seen = seen_by([(16, 70)], Adapter(1, 16, 1, tokens=70, side_effects=replace(EFFECTS, loss_difference=0.05)), 0.1)
    known, bounded = (
        Forecaster(BASE, (), WHERE, None, seen),
        Forecaster(BASE, (), WHERE, None, replace(seen, cost=None)),
    )
    assert (known.chance(16, 100), known.likely(16, 100), known.likely(16, 200)) == (None, True, False)
    assert bounded.likely(16, 10**9)
    unbounded = Forecaster(BASE, (), WHERE, None, replace(seen, max_harm=math.inf))
    assert unbounded.likely(16, 10**9)


def test_a_new_ledger_finds_the_rank_of_its_room() -> None:
    found = sized(BASE, 10, WHERE, PUBLISHED)
    like_codes = Forecaster(BASE, bench(BASE, codes(), (), True, harm=False).wanted, WHERE, PUBLISHED)
    assert told(like_codes, found.rank - 1, 10) < 0.95 <= found.chance == told(like_codes, found.rank, 10)
    assert (found.tokens, found.like, found.law, found.borrowed) == (10, None, default_law().source, True)
    assert sized(BASE, 10, WHERE, PUBLISHED, codes(5)).like == 5


def test_a_room_that_no_rank_has_or_no_law_can_tell_is_refused() -> None:
    with pytest.raises(ConfigError, match="No rank up to"):
        sized(BASE, 10**6, WHERE, PUBLISHED)
    with pytest.raises(ConfigError, match="from 1 up"):
        sized(BASE, 0, WHERE, PUBLISHED)
    with pytest.raises(FitError, match="does not apply"):
        sized(BASE, 40, WHERE, cannot_be_used)


@pytest.mark.parametrize(("rank", "room"), [(None, None), (8, 100)])
def test_a_rank_or_a_room_is_asked_for(rank: int | None, room: int | None) -> None:
    with pytest.raises(ConfigError, match="and not both"):
        check_asked(rank, room)
    check_asked(8, None)
    check_asked(None, 100)


def test_the_rank_never_goes_down() -> None:
    assert (check_rank(8, None), check_rank(8, 8), check_rank(8, 9)) == (8, 8, 9)
    with pytest.raises(ConfigError, match="below the ledger's 8"):
        check_rank(8, 7)


def test_codes_are_the_same_in_every_call() -> None:
    assert codes() == codes()
    assert len({fact.target for fact in codes()}) == 64
    assert math.isclose(sum(len(fact.target) for fact in codes()) / 64, 9.0)
