"""Speed costs no exactness: a stack of adapters on a cached prefix gives each adapter what plain training gives it.

Three ways to train the same adapters, over every family, every kind of placement, ranks 1 to 16, sft and ot, with and
without dropout, each adapter with its own order of rows: all in one stack; each in a stack of its own; and each by
`slow_training.train_alone`: PEFT (a plain module at placements that PEFT does not support), `torch.optim.AdamW`,
`clip_grad_norm_`, and a full forward with all logits, fact by fact. The losses of all steps and the final weights must
agree. tests/losses/test_head_pass.py shows that the pass through the head is autograd through `F.cross_entropy`.

*How close.* Weights are compared as two vectors, all A and all B of the adapter, each relative to its own norm. Before
AdamW divides by sqrt(v), they agree within 1e-12 in float64 and 1e-6 in float32; that is tested with gradients clipped
far below AdamW's epsilon, so that it divides by a constant. Otherwise it moves a weight whose gradient g_i is all
rounding as far as any other: a relative error e of the gradient becomes e |g| / |g_i| in the step of weight i, and
|g_i| can be arbitrarily small. One such weight turns the 1e-14 of a float64 run into 1e-11; losses stay within 1e-12.
After a few steps, PEFT in float32 is 1e-7 to 5e-4 away from PEFT in float64, the more modules are adapted the farther.
So float32 has to be as close to float64 as PEFT is there; losses still stay within 1e-6, unless every linear module of
every layer is adapted.

transformers computes norms and some softmaxes in float32 even in float64 models. Both sides round them alike as long as
both divide by the number of tokens after the backward pass of the model, as a step in several parts must. If the
division comes before it, as for users of PEFT, they are 1e-7 apart.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import packed, tiny
from helpers import slow_training as reference
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.model.base import Base
from memlaw.model.parts import frozen
from memlaw.model.split import Forward, FullForward, split
from memlaw.training.engine import Engine
from memlaw.training.result import StackProgress, Trained
from memlaw.training.rows import row_order
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

FACTS = tiny.facts([(5, 4), (3, 7), (6, 2)])

BASES = [*tiny.FAMILIES, "quantised"]

PLACEMENTS = {
    "parallel": "mlp@2",
    "one-module": "{one}@2",
    "one-module-in-several-layers": "{one}@1+3",
    "several-modules": "{two}@2",
    "all-linear": "all-linear",
    "first-layer": "{one}@0",
}

MODULES = {
    "gpt2": {"one": "c_fc", "two": "c_attn,c_fc"},
    "gpt-neox": {"one": "dense_4h_to_h", "two": "query_key_value,dense_h_to_4h"},
    "phi3": {"one": "down_proj", "two": "qkv_proj,gate_up_proj"},
}

USUAL = {"one": "down_proj", "two": "q_proj,v_proj"}

Ranked = tuple[int, TrainConfig]

CONFIG = TrainConfig(steps=6, learning_rate=2e-2, batch_size=2)

RUNS: tuple[Ranked, ...] = (
    (1, CONFIG),
    (4, replace(CONFIG, method="ot", learning_rate=1e-2, schedule="constant", clip=0.1, scale=2.0, seed=1)),
    (
        16,
        replace(CONFIG, steps=4, init="paper", weight_decay=0.1, scale=4.4, scaling="rslora", seed=2),
    ),  # leaves before the others
)
"""Ranks from 1 to 16, all with different settings."""

UNDIVIDED = {"clip": 1e-10, "learning_rate": 4.0}
"""Gradients a hundred times below AdamW's epsilon of 1e-8, so that it divides by little more than that constant."""

QUICK = {(name, list(PLACEMENTS)[i % 6], (0.0, 0.1)[i // 6 % 2]) for i, name in enumerate(BASES)}
"""Every base, every placement, with and without dropout; their other combinations are slow."""


def grid(*dropouts: float) -> Any:
    """Parametrises over every (name, where, dropout), or every (name, where) if no dropout is given."""
    every = list(itertools.product(BASES, PLACEMENTS, *filter(None, [dropouts])))
    width = len(every[0])
    quick = {case[:width] for case in QUICK}
    cases = [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in every]
    return pytest.mark.parametrize(("name", "where", "dropout")[:width], cases)


@cache
def base(name: str, dtype: torch.dtype) -> Base:
    model = packed.model(dtype=dtype) if name == "quantised" else tiny.model(name, dtype=dtype)
    return tiny.wrap(model, tiny.tokenizer())


def placed(where: str, name: str) -> Placement:
    text = PLACEMENTS[where].format(**MODULES.get(name, USUAL))
    return placement_on(text, base(name, torch.float32).model)


def batches(config: TrainConfig) -> list[list[int]]:
    order = row_order(len(FACTS), config)
    return [next(order).tolist() for _ in range(config.steps)]


def apart(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """|found - wanted| / |wanted|, each list of tensors taken as one vector."""
    one, two = (torch.cat([tensor.double().flatten() for tensor in tensors]) for tensors in (found, wanted))
    return float((one - two).norm() / two.norm())


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of training one adapter."""

    a: list[Tensor]
    """[d_in, rank] of each site."""
    b: list[Tensor]
    """[rank, d_out] of each site."""
    final: float
    """Mean loss of all facts, without dropout."""
    losses: list[float]
    """The loss before each step."""

    @classmethod
    def ours(cls, trained: Trained, losses: list[float]) -> Outcome:
        assert trained.loss_final is not None
        a, b = ([tensor[0] for tensor in half] for half in zip(*trained.stack.pairs, strict=True))
        return cls(a, b, trained.loss_final, losses)

    @classmethod
    def by_hand(cls, base: Base, placement: Placement, run: Ranked) -> Outcome:
        rank, config = run
        alone = reference.train_alone(base.model, FACTS, placement, rank, config, batches=batches(config))
        with torch.no_grad():
            final = float(torch.cat([reference.nll_of(alone.model, fact) for fact in FACTS]).mean())
        a, b = map(list, zip(*alone.pairs, strict=True))
        return cls(a, b, final, alone.losses)

    def weights_from(self, other: Outcome) -> float:
        """Relative distance of the weights: the larger of all A and all B."""
        return max(apart(self.a, other.a), apart(self.b, other.b))

    def losses_from(self, other: Outcome) -> float:
        """Largest relative distance of a loss, including the final one."""
        pairs = zip([*self.losses, self.final], [*other.losses, other.final], strict=True)
        return max(abs(mine - theirs) / theirs for mine, theirs in pairs)


def stacked(base: Base, placement: Placement | Sequence[Placement], runs: Sequence[Ranked]) -> list[Outcome]:
    """The results of one stack."""
    seen: list[StackProgress] = []
    places = [placement] * len(runs) if isinstance(placement, Placement) else placement
    placed_runs = [Run(rank, place, config) for place, (rank, config) in zip(places, runs, strict=True)]
    trained = train_stack(base, FACTS, placed_runs, on_step=seen.append)
    losses = [[loss for progress in seen for run, loss in progress.losses if run == k] for k in range(len(runs))]
    return [Outcome.ours(*pair) for pair in zip(trained, losses, strict=True)]


def check_all_three(base: Base, placement: Placement, runs: Sequence[Ranked], *, losses: float, weights: float) -> None:
    """One stack, a stack for each adapter, and plain training agree within these relative distances."""
    for run, among in zip(runs, stacked(base, placement, runs), strict=True):
        (alone,), by_hand = stacked(base, placement, [run]), Outcome.by_hand(base, placement, run)
        for wanted in (alone, by_hand):
            assert among.losses_from(wanted) <= losses
            assert among.weights_from(wanted) <= weights


@grid(0.0, 0.1)
def test_a_stack_is_each_adapter_alone_is_peft(name: str, where: str, dropout: float) -> None:
    runs = [(rank, replace(config, dropout=dropout)) for rank, config in RUNS]
    check_all_three(base(name, torch.float64), placed(where, name), runs, losses=1e-12, weights=1e-9)


def test_a_stack_of_different_placements_is_each_adapter_alone_is_peft() -> None:
    exact, places = base("qwen3", torch.float64), [placed(where, "qwen3") for where in PLACEMENTS]
    runs = [(rank, replace(CONFIG, seed=rank, dropout=0.1)) for rank in range(1, 1 + len(places))]
    for place, run, among in zip(places, runs, stacked(exact, places, runs), strict=True):
        by_hand = Outcome.by_hand(exact, place, run)
        assert among.losses_from(by_hand) <= 1e-12
        assert among.weights_from(by_hand) <= 1e-9


@grid(0.1)
def test_equal_to_twelve_digits_while_adamw_divides_by_a_constant(name: str, where: str, dropout: float) -> None:
    runs = [(rank, replace(config, dropout=dropout, **UNDIVIDED)) for rank, config in RUNS]
    check_all_three(base(name, torch.float64), placed(where, name), runs, losses=1e-12, weights=1e-12)


@grid(0.0, 0.1)
def test_equal_to_six_digits_in_float32_while_adamw_divides_by_a_constant(
    name: str, where: str, dropout: float
) -> None:
    runs = [(rank, replace(config, dropout=dropout, **UNDIVIDED)) for rank, config in RUNS]
    check_all_three(base(name, torch.float32), placed(where, name), runs, losses=1e-6, weights=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["parallel", "one-module", "several-modules", "all-linear"])
def test_in_float32_a_stack_is_as_close_to_float64_as_peft_is(where: str) -> None:
    runs = [(rank, replace(config, dropout=0.1)) for rank, config in RUNS]
    times_as_far = []
    for name in BASES:
        placement = placed(where, name)
        for run, ours in zip(runs, stacked(base(name, torch.float32), placement, runs), strict=True):
            exact, peft = (
                Outcome.by_hand(base(name, dtype), placement, run) for dtype in (torch.float64, torch.float32)
            )
            times_as_far.append(ours.weights_from(exact) / peft.weights_from(exact))
            if where != "all-linear":
                assert ours.losses_from(peft) <= 1e-6
    assert statistics.geometric_mean(times_as_far) < 1.5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@grid()
def test_after_the_cached_layers_states_and_gradients_are_those_of_the_full_forward(
    name: str, where: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, placement = base(name, dtype).model, placed(where, name)
    ids = torch.randint(3, tiny.VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    stack = AdapterStack.start(placement.sites, RUNS, device="cpu", dtype=str(dtype).removeprefix("torch."))
    stream = torch.Generator().manual_seed(2)
    for _, b in stack.pairs:
        b.normal_(generator=stream, std=0.1)
    pull = torch.randn(len(RUNS) * 2, 12, 32, generator=stream).to(dtype)

    def states_and_gradients(forward: Forward) -> tuple[Tensor, tuple[Tensor, ...]]:
        cached = forward.cache(ids)
        tensors = [tensor.requires_grad_(True) for tensor in stack.tensors]
        with stack.attached(model):
            states = forward(torch.cat([cached] * len(RUNS)))
        return states.detach(), torch.autograd.grad(states, tensors, pull)

    with frozen(model):
        last = max(site.layer for site in placement.sites)
        forward = split(model, placement.first_layer, placement.first_sites, ids, last)
        found, found_gradients = states_and_gradients(forward)
        wanted, wanted_gradients = states_and_gradients(FullForward(model))
    assert apart([found], [wanted]) <= tolerance
    assert apart(found_gradients[::2], wanted_gradients[::2]) <= tolerance
    assert apart(found_gradients[1::2], wanted_gradients[1::2]) <= tolerance


@pytest.mark.parametrize("where", PLACEMENTS)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_in_parts_is_the_whole_step(where: str, rows: int) -> None:
    exact, placement = base("qwen3", torch.float64), placed(where, "qwen3")
    together = replace(CONFIG, batch_size=0, dropout=0.1)
    methods = [
        *(replace(together, method=method, seed=seed) for seed, method in enumerate(("sft", "ot", "sw"))),
        replace(together, method="ot", rule="fallback", margin=0.1),
    ]
    runs = [Run(3, placement, config) for config in methods]
    with frozen(exact.model):
        whole, parts = (Engine(exact, FACTS, runs) for _ in range(2))
        one, two = whole.start(), parts.start()
        two.rows_at_once = rows
        for state in (one, two):
            for _, b in state.stack.pairs:
                b.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
        wanted, found = whole.step(one), parts.step(two)
    assert apart(found.gradients, wanted.gradients) <= 1e-12
    assert apart([found.loss], [wanted.loss]) <= 1e-12
    assert torch.equal(found.ordered, wanted.ordered)
    assert torch.equal(found.tokens, wanted.tokens)


@pytest.mark.parametrize("where", PLACEMENTS)
def test_packed_weights_train_as_the_same_weights_unpacked(where: str) -> None:
    quantised, placement = base("quantised", torch.float64), placed(where, "quantised")
    ordinary = tiny.wrap(packed.unpacked(quantised.model), tiny.tokenizer())
    for found, wanted in zip(*(stacked(each, placement, RUNS) for each in (quantised, ordinary)), strict=True):
        assert found.losses_from(wanted) <= 1e-12
        assert found.weights_from(wanted) <= 1e-9


def test_modules_that_share_a_weight_have_separate_adapters() -> None:
    model = tiny.model("llama", dtype=torch.float64)
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    tied = tiny.wrap(model, tiny.tokenizer())
    check_all_three(tied, placement_on("down_proj@1+2", model), RUNS, losses=1e-12, weights=1e-9)


@pytest.mark.parametrize("where", PLACEMENTS)
def test_training_mode_and_checkpointing_of_the_base_change_nothing(where: str) -> None:
    model = tiny.model("gpt2", dtype=torch.float64, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    placement = placed(where, "gpt2")
    expected = stacked(tiny.wrap(model, tiny.tokenizer()), placement, RUNS)
    model.train().requires_grad_(True)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    found = stacked(tiny.wrap(model, tiny.tokenizer()), placement, RUNS)
    for one, two in zip(found, expected, strict=True):
        assert all(map(torch.equal, one.a + one.b, two.a + two.b))
        assert (one.losses, one.final) == (two.losses, two.final)
    assert model.training
    assert model.is_gradient_checkpointing
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
