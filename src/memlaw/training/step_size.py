"""A learning rate for runs that leave it open: a few steps with each of several, and the smallest that gets far.

The step size that an adapter bears depends on the model, on where it sits and on how many modules it changes, so no
number serves all. The rates train as one stack, unprotected, on a few of the facts. Of those that get nearly as far as
the best, the smallest wins, since large steps cost the model more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from memlaw.core.config import AUTO, Optimizer, TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.core.stages import tell
from memlaw.model.base import Base
from memlaw.model.memory import out_of_memory
from memlaw.training.engine import Engine
from memlaw.training.run import Run

RATES: Mapping[Optimizer, tuple[float, ...]] = {
    "adamw": (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
    "muon": (2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
}
"""Rates to choose from: a step of AdamW moves each weight by about the rate, one of Muon each direction."""

STEPS = 12
"""Enough for a rate that is too large to show it: B starts at zero, so the first step changes nothing but B."""

RECORDS = 8

FAR = 0.65
"""Share of the best rate's gain that the chosen one reaches at least."""

STAGE = "steps of comparing learning rates"


def settled(base: Base, facts: Sequence[EncodedFact], runs: Sequence[Run], also: Sequence[Base] = ()) -> list[Run]:
    """`runs`, with learning rates where they have none (0). The base, and those that they train on `also`, are frozen.

    The same arguments give the same rates.
    """
    known: dict[tuple[object, ...], float] = {}
    settled_runs = []
    for run in runs:
        config = run.config
        if config.learning_rate == AUTO:
            same = (run.rank, str(run.placement), config, id(run.start))
            if same not in known:
                known[same] = _rate((base, *also), _some(facts), run)
            config = replace(config, learning_rate=known[same])
        settled_runs.append(replace(run, config=config))
    return settled_runs


def _some(facts: Sequence[EncodedFact]) -> list[EncodedFact]:
    """Some facts, evenly spaced; those to recall, if there are any."""
    facts = [fact for fact in facts if not fact.floor] or facts
    step = max(1, len(facts) / RECORDS)
    return [facts[int(place * step)] for place in range(min(RECORDS, len(facts)))]


def _rate(bases: Sequence[Base], facts: Sequence[EncodedFact], run: Run) -> float:
    """The smallest rate that gets far."""
    rates = RATES[run.config.optimizer]
    gains = _gains(bases, facts, run, rates).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    far = (gains >= FAR * gains.max()).nonzero()
    return rates[int(far[0])] if gains.max() > 0 else rates[0]


def _gains(bases: Sequence[Base], facts: Sequence[EncodedFact], run: Run, rates: Sequence[float]) -> Tensor:
    """By how much each rate lowers the mean loss of `facts`: [rates]. With fewer at once if memory is short."""
    try:
        trials = [replace(run, config=_trial(run.config, rate)) for rate in rates]
        engine = Engine(bases[0], facts, trials, also=bases[1:])
        state = engine.start()
        before = engine.mean(engine.evaluate(None if run.start is None else state.stack))
        for step in range(STEPS):
            tell(STAGE, step, STEPS)
            engine.advance(state, engine.step(state))
        tell(STAGE, STEPS, STEPS)
        return before - engine.mean(engine.evaluate(state.stack))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if len(rates) > 1:
        return torch.cat([_gains(bases, facts, run, [rate]) for rate in rates])
    if len(facts) > 1:
        return _gains(bases, facts[:1], run, rates)
    return torch.zeros(1, dtype=torch.float64)  # the training itself will say what does not fit


def _trial(config: TrainConfig, rate: float) -> TrainConfig:
    """Of a few steps on a few facts, with the latest weights, which is all that a few steps have."""
    return replace(config, learning_rate=rate, schedule="constant", average=0, batch_size=0, protect=0.0, rehearse=0)
