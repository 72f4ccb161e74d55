"""Which learning rate a run gets that leaves it open."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import AUTO, Optimizer, TrainConfig
from memlaw.model.base import Base
from memlaw.model.parts import frozen
from memlaw.training.engine import Engine
from memlaw.training.run import Run
from memlaw.training.stack import train_stack
from memlaw.training.step_size import FAR, RATES, RECORDS, STEPS, settled

FACTS = tiny.facts([(3, 4), (2, 6), (5, 3), (4, 4)])
OPEN = TrainConfig(steps=30, learning_rate=AUTO)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base()


def rate_of(base: Base, config: TrainConfig, placement: str | None = None) -> float:
    with frozen(base.model):
        (run,) = settled(base, FACTS, [Run(3, placement_on(placement, base.model), config)])
    return run.config.learning_rate


def gain(base: Base, config_of: TrainConfig, rate: float) -> float:
    """What a run of its own gains in as many steps, on all facts at once."""
    config = replace(config_of, learning_rate=rate, schedule="constant")
    run = Run(3, placement_on(None, base.model), config)
    with frozen(base.model):
        engine = Engine(base, FACTS, [run])
        state = engine.start()
        for _ in range(STEPS):
            engine.advance(state, engine.step(state))
        return float(engine.mean(engine.evaluate(None))[0] - engine.mean(engine.evaluate(state.stack))[0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_is_the_smallest_rate_that_gains_half_of_the_most(base: Base, optimizer: Optimizer) -> None:
    config = replace(OPEN, optimizer=optimizer, schedule="linear" if optimizer == "adamw" else "share", average=3)
    assert len(FACTS) <= RECORDS
    gains = {rate: gain(base, config, rate) for rate in RATES[optimizer]}
    assert rate_of(base, config) == min(rate for rate, gained in gains.items() if gained >= FAR * max(gains.values()))


def test_a_rate_that_is_given_stays(base: Base) -> None:
    assert rate_of(base, replace(OPEN, learning_rate=0.123)) == 0.123


def test_a_run_that_leaves_it_open_trains_as_with_the_rate_it_gets(base: Base) -> None:
    where = placement_on(None, base.model)
    (found,) = train_stack(base, FACTS, [Run(3, where, OPEN)])
    assert found.config.learning_rate == rate_of(base, OPEN)
    (wanted,) = train_stack(base, FACTS, [Run(3, where, found.config)])
    assert found.config == wanted.config
    for a, b in zip(found.stack.tensors, wanted.stack.tensors, strict=True):
        assert torch.equal(a, b)


def test_runs_of_a_stack_that_leave_it_open_get_each_their_own(base: Base) -> None:
    runs = [
        Run(2, placement_on("all-linear", base.model), OPEN),
        Run(2, placement_on("down_proj@2", base.model), replace(OPEN, learning_rate=1e-3)),
    ]
    first, second = train_stack(base, FACTS, runs)
    assert first.config.learning_rate in RATES["adamw"]
    assert second.config.learning_rate == 1e-3


def test_a_run_that_goes_on_gains_from_where_it_starts_and_has_a_rate_of_its_own(base: Base) -> None:
    """From nearly all there is to gain, every rate gains little: what counts is the share of that little."""
    where = placement_on(None, base.model)
    (start,) = train_stack(base, FACTS, [Run(3, where, replace(OPEN, learning_rate=2e-2, steps=40))])
    runs = [Run(3, where, OPEN), Run(3, where, OPEN, start=start.stack)]
    with frozen(base.model):
        rates = [run.config.learning_rate for run in settled(base, FACTS, runs)]
        alone = [settled(base, FACTS, [run])[0].config.learning_rate for run in runs]
        gains = {}
        for rate in RATES["adamw"]:
            run = replace(runs[1], config=replace(OPEN, learning_rate=rate, schedule="constant"))
            engine = Engine(base, FACTS, [run])
            state = engine.start()
            before = float(engine.mean(engine.evaluate(state.stack)))
            for _ in range(STEPS):
                engine.advance(state, engine.step(state))
            gains[rate] = before - float(engine.mean(engine.evaluate(state.stack)))
    assert rates == alone
    assert rates[1] == min(rate for rate, gained in gains.items() if gained >= FAR * max(gains.values()))


def test_what_must_not_come_back_does_not_choose_the_rate(base: Base) -> None:
    forgotten = [replace(fact, floor=(9.0,) * fact.length) for fact in tiny.facts([(4, 3)] * 20, seed=7)]
    run = Run(3, placement_on(None, base.model), OPEN)
    with frozen(base.model):
        plain, mixed = (settled(base, facts, [run])[0] for facts in (FACTS, (*FACTS, *forgotten)))
    assert plain.config == mixed.config
