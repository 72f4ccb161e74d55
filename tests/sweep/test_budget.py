"""A budgeted probe trains the cells that help a plan most, within its time, and stops when the plan is sharp."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import sample, tiny
from memlaw.adapter.on_model import placement_on
from memlaw.core.cells import CellResult
from memlaw.core.errors import ConfigError
from memlaw.core.facts import Fact, MemorySet
from memlaw.law import points_from_results
from memlaw.sweep.budget import NARROW, RANKS, Budget, Goal, _Belief, candidate_axes, parse_seconds, plan_by_cells
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.pack import Pack
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import ProbeRun

BASE = tiny.base()

PLACEMENT = placement_on("down_proj@2", BASE.model)

GOAL = Goal(records=1, tokens=200, loss_init=10.0, loss_memoryless=6.0, placement=PLACEMENT)

LENGTHS = (25, 50, 100, 200, 400)


def final_loss(rank: int, length: int) -> float:
    """The memory form with C 25, alpha 0.8, beta 0.5, n 4 under 6 nats, and one percent of scatter."""
    u = 25.0 * rank**0.8 * length**-0.5
    scatter = 1 + 0.01 * ((7 * rank + length) % 3 - 1)
    return 6.0 - 6.0 * (1 + (u * scatter / 6.0) ** -4.0) ** (-1 / 4)


def result(rank: int, length: int) -> CellResult:
    loss = final_loss(rank, length)
    return sample.cell(rank, length, loss, acc_token=float(loss < 0.3), loss_memoryless=6.0)


PACKS: list[Pack] = [tuple(result(rank, length).cell for rank in (1, 2, 4, 8, 16, 32)) for length in LENGTHS]


@dataclass
class Run:
    """Trains what a budget chooses, on a simulated clock that runs by the tokens of a step."""

    budget: Budget
    clock: list[float]
    tokens_per_second: float
    packs: list[Pack] = field(default_factory=lambda: list(PACKS))
    results: list[CellResult] = field(default_factory=list)
    chosen: list[Pack] = field(default_factory=list)

    def go(self) -> Run:
        while (pack := self.budget(self.packs, self.results)) is not None:
            self.packs.remove(pack)
            self.chosen.append(pack)
            self.clock[0] += sum(cell.length for cell in pack) / self.tokens_per_second
            self.results += [result(cell.rank, cell.length) for cell in pack]
        return self


@functools.cache
def run(seconds: float, tokens_per_second: float) -> Run:
    clock = [100.0]
    return Run(Budget(seconds, GOAL, clock=lambda: clock[0]), clock, tokens_per_second).go()


@given(seconds=st.floats(1, 1e4), speed=st.floats(0.1, 1e5))
@settings(max_examples=5, deadline=None)
def test_after_the_first_no_pack_starts_that_takes_longer_than_the_time_left(seconds: float, speed: float) -> None:
    spent = run(seconds, speed)
    if len(spent.chosen) > 1:
        assert spent.clock[0] - 100.0 <= seconds * (1 + 1e-9)
    assert spent.budget.why


def test_the_first_pack_is_the_cheapest() -> None:
    assert run(1e9, 1.0).chosen[0] == PACKS[0]


def test_longer_lengths_and_more_cells_tell_more_about_the_goal() -> None:
    belief = _Belief(GOAL, points_from_results([result(cell.rank, cell.length) for cell in PACKS[0]]))
    gains = [belief.gain(pack) for pack in PACKS[1:]]
    assert gains == sorted(gains)
    assert belief.gain(PACKS[2][:3]) < belief.gain(PACKS[2])


def test_it_stops_as_soon_as_the_plan_is_sharp() -> None:
    spent = run(1e9, 1.0)
    assert len(spent.chosen) < len(PACKS)
    answer = plan_by_cells(GOAL, points_from_results(spent.results), spent.results)
    assert answer is not None
    assert answer.rank.high <= NARROW * answer.rank.low
    assert spent.budget.why == (
        f"The plan is sharp enough: rank {answer.rank.value} (95%: {answer.rank.low} to {answer.rank.high})."
    )
    before = [r for r in spent.results if r.cell.length != spent.chosen[-1][0].length]
    earlier = plan_by_cells(GOAL, points_from_results(before), before)
    assert earlier is None or earlier.rank.high is None or earlier.rank.high > NARROW * earlier.rank.low


def test_it_stops_when_the_time_is_up() -> None:
    spent = run(1.0, 1e-3)
    assert len(spent.chosen) == 1
    assert spent.budget.why.startswith("The budget of 1 s is used up, or too short")


def test_too_few_cells_allow_no_plan() -> None:
    assert plan_by_cells(GOAL, (), []) is None
    one_length = [result(rank, 50) for rank in (1, 2, 4, 8)]
    assert plan_by_cells(GOAL, points_from_results(one_length), one_length) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m ", 120), (".5s", 0.5)]
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "ten", "10 days", "-5m", "1e3", "m"])
def test_other_text_is_not_a_duration(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a duration\. Write it as 90s, 10m or 2h"):
        parse_seconds(text)


def test_the_grid_is_within_the_placement_and_the_facts() -> None:
    many = tiny.facts([(4, 6)] * 40)
    axes = candidate_axes(many, PLACEMENT)
    assert axes["ranks"] == [rank for rank in RANKS if rank <= PLACEMENT.max_rank]
    assert axes["lengths"] == [8, 15, 30, 60, 120, 240]
    assert candidate_axes(tiny.facts([(4, 3)]), PLACEMENT)["lengths"] == [1, 2, 3]
    assert candidate_axes(tiny.facts([(4, 6), (5, 6)]), PLACEMENT)["lengths"] == [6, 12]


def test_the_goal_is_measured_on_the_base() -> None:
    facts = tiny.facts([(4, 6), (5, 6)])
    goal = Goal.measured(BASE, facts, PLACEMENT)
    assert (goal.records, goal.tokens) == (2, 12)
    assert 0 < goal.loss_memoryless <= goal.loss_init


def test_a_probe_trains_the_chosen_packs_and_a_rerun_the_rest(tmp_path) -> None:
    facts = (Fact(f"number {at}:", f"{3571 * at % 100000:05d}x", str(at)) for at in range(1, 9))
    memory_set = MemorySet(tuple(facts), eos=False, source="numbers")
    config = ProbeConfig(ranks=(1, 2, 4), lengths=(12, 24, 48), steps=5, placement="down_proj@2")
    took = itertools.count(1)

    def two(packs, results):
        return packs[-1] if next(took) <= 2 else None

    summary = probe(BASE, memory_set, config, tmp_path / "P", ProbeRun(chooser=two))
    assert (summary.finished, summary.failed, summary.cells) == (6, 0, 9)
    again = probe(BASE, memory_set, config, tmp_path / "P")
    assert (again.finished, again.failed) == (9, 0)
