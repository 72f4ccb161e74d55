"""What a step computes with facts that must not come back, and where an adapter starts that goes on from another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers import slow_training as reference
from helpers import tiny
from helpers.adapters import trained
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.core.recall import LN2
from memlaw.model.base import Base
from memlaw.model.parts import frozen
from memlaw.model.rounding import served_as
from memlaw.training.engine import Engine, unwanted_weights
from memlaw.training.run import Run

CONFIG = TrainConfig(method="ot")


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base(dtype=torch.float64)


def an_adapter(base: Base, rank: int = 3) -> AdapterStack:
    stack = trained(placement_on("down_proj@2+3", base.model), rank)
    for _, b in stack.pairs:
        b.mul_(0.05)
    return stack


def some_facts(base: Base, adapter: AdapterStack | None = None) -> list[EncodedFact]:
    """Two facts that the adapted model knows in part, and one of these with floors on both sides of its losses."""
    facts = []
    with (adapter or an_adapter(base)).attached(base.model), torch.no_grad():
        for prompt in ([5, 6, 7], [20, 31, 9, 8], [44, 4]):
            target = reference.greedy(base.model, prompt, 5)
            facts.append(EncodedFact(f"f{prompt[0]}", (*prompt, *target[:-1], 3 + target[-1] % 50), len(prompt)))
        nll = reference.nll_of(base.model, facts[-1]).tolist()
    facts[-1] = replace(facts[-1], floor=tuple(loss + (1.0, -0.25)[place % 2] for place, loss in enumerate(nll)))
    return facts


def engine_of(base: Base, facts: list[EncodedFact], start: AdapterStack | None = None, **changes: Any) -> Engine:
    run = Run(3, placement_on("down_proj@2+3", base.model), replace(CONFIG, **changes), start=start)
    with frozen(base.model):
        return Engine(base, facts, [run])


@pytest.mark.parametrize("batch_size", [0, 1, 2])
@pytest.mark.parametrize("method", ["ot", "sft"])
def test_the_gradient_is_that_of_the_threshold_loss_and_its_mirror_image(
    base: Base, method: str, batch_size: int
) -> None:
    adapter = an_adapter(base)
    facts = some_facts(base, adapter)
    engine = engine_of(base, facts, adapter, scale=1.5, method=method, batch_size=batch_size)
    state = engine.start()
    for _ in range(3):
        with frozen(base.model):
            step = engine.step(state)
        rows = engine._orders[0].rows_of(state.step).tolist()
        tensors = [tensor.requires_grad_(True) for tensor in state.stack.tensors]
        with frozen(base.model), state.stack.attached(base.model):
            loss = reference.mirrored_loss(base.model, [facts[row] for row in rows], LN2 if method == "ot" else 0.0)
            wanted = torch.autograd.grad(loss, tensors)
        for found, gradient in zip(step.gradients, wanted, strict=True):
            assert float((found - gradient).norm()) <= 1e-6 * float(gradient.norm())
        assert any(bool(gradient.abs().max() > 1e-6) for gradient in wanted)
        state.step += 1


@pytest.mark.parametrize("changes", [{"focus": 1.0}, {"position": 2.0}, {"method": "sw"}, {"method": "sft"}])
def test_no_method_weighs_what_is_to_be_forgotten_in_another_way(base: Base, changes: dict[str, Any]) -> None:
    adapter = an_adapter(base)
    forgotten = some_facts(base, adapter)[-1:]
    plain, other = (engine_of(base, forgotten, adapter, scale=1.5, **some) for some in ({}, changes))
    with frozen(base.model):
        first, second = (engine.step(engine.start()) for engine in (plain, other))
    for found, gradient in zip(second.gradients, first.gradients, strict=True):
        torch.testing.assert_close(found, gradient)
    assert float(first.norms) > 0


def test_weights_are_minus_one_below_the_floor_and_zero_from_it_on() -> None:
    nll, inf = torch.tensor([0.1, 2.0, 1.0, 5.0, torch.inf]), torch.inf
    found = unwanted_weights(torch.ones(5), nll, torch.tensor([-inf, -inf, 1.5, 5.0, 9.0]))
    assert found.tolist() == [1.0, 1.0, -1.0, 0.0, 0.0]


def test_rule_fallback_trains_no_unwanted_token_back_in(base: Base) -> None:
    adapter = an_adapter(base)
    forgotten = replace(some_facts(base, adapter)[-1], floor=(-1.0,) * 5)
    engine = engine_of(base, [forgotten], adapter, scale=1.5, rule="fallback")
    with frozen(base.model):
        step = engine.step(engine.start())
    assert float(step.norms) == 0.0
    assert (float(step.loss), float(step.tokens)) == (0.0, 0.0)


def test_an_infinite_loss_of_an_unwanted_token_is_no_divergence(base: Base) -> None:
    """Such a token is as gone as can be."""
    engine = engine_of(base, some_facts(base))
    nll = torch.zeros(1, *engine.rows.mask.shape).masked_fill(engine.rows.unwanted, torch.inf)
    assert float(engine.mean(nll)) == 0.0
    assert float(engine.left(nll, torch.tensor([LN2]))) == 0.0


def test_left_counts_tokens_on_the_wrong_side_of_limit_or_floor(base: Base) -> None:
    first, second = tiny.facts([(3, 2), (2, 4)])
    engine = engine_of(base, [first, replace(second, floor=(1.0, 1.0, 1.0, -1.0))])
    nll = torch.tensor([[[0.1, 0.7, 9.0, 9.0], [0.9, 1.0, 1.1, 0.0]]])
    assert float(engine.left(nll, torch.tensor([LN2]))) == pytest.approx(2 / 6)
    assert float(engine.mean(nll)) == pytest.approx(0.4)
    assert not engine.all_ordered(nll, torch.tensor([LN2]))
    nll[0, 0, 1], nll[0, 1, 0] = 0.6, 1.0
    assert engine.all_ordered(nll, torch.tensor([LN2]))


def test_nothing_is_where_it_should_be_before_a_step_has_seen_it(base: Base) -> None:
    engine = engine_of(base, some_facts(base))
    assert float(engine.left(engine.start().latest, torch.tensor([LN2]))) == 1.0


def test_an_adapter_starts_as_the_one_it_goes_on_from(base: Base) -> None:
    adapter, facts = an_adapter(base, 2), tiny.facts([(4, 6), (3, 5)])
    engine = engine_of(base, facts, adapter)
    with frozen(base.model):
        found = engine.evaluate(engine.start().stack)[0, engine.rows.mask]
    with adapter.attached(base.model), torch.no_grad():
        wanted = torch.cat([reference.nll_of(base.model, fact) for fact in facts])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_step_on_several_bases_is_the_mean_of_the_steps_on_each(base: Base) -> None:
    bases = [served_as(base, precision) for precision in ("float64", "q8_0", "q4_0")]
    facts = tiny.facts([(3, 4), (2, 5), (4, 2)])
    run = Run(3, placement_on("down_proj@2+3", base.model), replace(CONFIG, method="sft", batch_size=2))
    adapter = an_adapter(base)
    with frozen(base.model):
        engines = [Engine(one, facts, [replace(run, start=adapter)]) for one in bases]
        both = Engine(bases[0], facts, [replace(run, start=adapter)], also=bases[1:])
        steps = [engine.step(engine.start()) for engine in engines]
        step, nll = both.step(both.start()), both.evaluate(both.start().stack)
    for found, *each in zip(step.gradients, *(one.gradients for one in steps), strict=True):
        torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-5, atol=1e-12)
        assert not torch.allclose(each[0], each[2], rtol=1e-2)
    assert step.forwarded.tolist() == [3 * int(steps[0].forwarded)]
    alone = [engine.evaluate(engine.start().stack)[0, : len(facts)] for engine in engines]
    torch.testing.assert_close(nll[0], torch.cat(alone))
