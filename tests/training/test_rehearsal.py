"""Rehearsed near misses: their gradient by definition, and that nothing else in a step depends on the stack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.core.errors import ConfigError
from memlaw.core.facts import EncodedFact
from memlaw.model.base import Base
from memlaw.model.parts import frozen
from memlaw.training.checkpoint import identity
from memlaw.training.engine import Engine
from memlaw.training.rehearsal import Rehearsal
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

FACTS = tiny.facts([(3, 4), (2, 6), (5, 3)])
NEAR = tiny.facts([(3, 1), (6, 1), (4, 1), (5, 1)], seed=8)
CONFIG = TrainConfig(steps=20, learning_rate=1e-2, rehearse=3)


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base(dtype=torch.float64)


def runs(base: Base, *configs: TrainConfig, near: tuple[EncodedFact, ...] = NEAR) -> list[Run]:
    return [Run(k + 1, placement_on(None, base.model), config, near) for k, config in enumerate(configs)]


def next_token(base: Base, fact: EncodedFact) -> Tensor:
    """ln of the probabilities after a prompt, by the model's own logits."""
    return base.model(torch.tensor([fact.ids[: fact.prompt_length]])).logits[0, -1].log_softmax(-1)


def test_the_gradient_is_that_of_the_mean_kl_after_the_prompts(base: Base) -> None:
    with frozen(base.model):
        engine = Engine(base, FACTS, runs(base, CONFIG, replace(CONFIG, seed=1)))
        state = engine.start()
        stream = torch.Generator().manual_seed(4)
        for _, b in state.stack.pairs:
            b.normal_(std=0.05, generator=stream)
        assert isinstance(engine.rehearsal, Rehearsal)
        everything = len(NEAR)  # all prompts, whatever their order
        found = engine.rehearsal.gradients(state, everything)
        for k in range(2):
            alone = state.stack.select([k])
            tensors = [tensor.requires_grad_(True) for tensor in alone.tensors]
            kl = []
            for fact in NEAR:
                log_p = next_token(base, fact)
                with alone.attached(base.model):
                    log_q = next_token(base, fact)
                kl.append((log_p.exp() * (log_p - log_q)).sum())
            wanted = torch.autograd.grad(torch.stack(kl).mean(), tensors)
            for one, other in zip(found, wanted, strict=True):
                rank_a, rank_b = other.shape[1], other.shape[2]
                torch.testing.assert_close(one[k, :rank_a, :rank_b], other[0])


def test_each_adapter_gets_what_it_would_get_alone(base: Base) -> None:
    together = train_stack(base, FACTS, runs(base, CONFIG, replace(CONFIG, seed=1)))
    for run, found in zip(runs(base, CONFIG, replace(CONFIG, seed=1)), together, strict=True):
        (alone,) = train_stack(base, FACTS, [run])
        for a, b in zip(found.stack.tensors, alone.stack.tensors, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_what_is_rehearsed_changes_less(base: Base) -> None:
    config = replace(CONFIG, steps=60)
    (without,), (rehearsed,) = (train_stack(base, FACTS, runs(base, c)) for c in (replace(config, rehearse=0), config))

    @torch.no_grad()
    def drift(stack: object) -> float:
        total = 0.0
        for fact in NEAR:
            log_p = next_token(base, fact)
            with stack.attached(base.model):  # type: ignore[attr-defined]
                log_q = next_token(base, fact)
            total += float((log_p.exp() * (log_p - log_q)).sum())
        return total

    assert drift(rehearsed.stack) < 0.7 * drift(without.stack)


def test_a_stack_rehearses_one_thing(base: Base) -> None:
    with pytest.raises(ConfigError, match="rehearse the same"):
        train_stack(base, FACTS, runs(base, CONFIG, replace(CONFIG, rehearse=2)))


def test_a_checkpoint_belongs_to_all_that_is_rehearsed_and_not_to_its_first_prompt(base: Base) -> None:
    with frozen(base.model):
        engines = [Engine(base, FACTS, runs(base, CONFIG, near=near)) for near in (NEAR, NEAR, NEAR[:3])]
    first, same, fewer = (identity(engine) for engine in engines)
    assert first == same != fewer
