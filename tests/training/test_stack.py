from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from helpers import slow_training as reference
from helpers import tiny
from helpers.runs import runs_at
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import UNTIL_RECALLED, TrainConfig
from memlaw.core.errors import AdapterError, ConfigError, TrainError
from memlaw.core.precision import Precision
from memlaw.core.recall import LN2
from memlaw.diagnosis.measure import measure
from memlaw.losses import IGNORED, WindowState, memft_loss
from memlaw.model.base import Base
from memlaw.model.rounding import served_as
from memlaw.training.engine import Engine
from memlaw.training.result import StackProgress, Trained
from memlaw.training.rows import row_order
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

FACTS = tiny.facts([(5, 4), (3, 7), (6, 2)])

SHORT = TrainConfig(steps=12, learning_rate=2e-2)


def close(ours: Trained, theirs: Trained, tolerance: float) -> None:
    for (a, b), (c, d) in zip(ours.stack.pairs, theirs.stack.pairs, strict=True):
        torch.testing.assert_close(a, c, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(b, d, rtol=tolerance, atol=tolerance)


def mean_loss(model: torch.nn.Module) -> float:
    with torch.no_grad():
        return float(torch.cat([reference.nll_of(model, fact) for fact in FACTS]).mean())


def train(base: Base, runs: list[tuple[int, TrainConfig]], placement: str | None = None) -> list[Trained]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return train_stack(base, FACTS, runs_at(placement_on(placement, base.model), runs))


@pytest.mark.parametrize("placement", ["down_proj@2", "mlp@1", "q_proj,v_proj", "all-linear"])
def test_a_stack_gives_each_adapter_what_it_would_get_alone(placement: str) -> None:
    base = tiny.base(dtype=torch.float64)
    runs = [
        (1, SHORT),
        (4, replace(SHORT, method="ot", seed=1)),
        (3, replace(SHORT, learning_rate=1e-3, schedule="constant", clip=0.1, scale=2.0)),
        (4, replace(SHORT, steps=5, dropout=0.1, weight_decay=0.1, init="paper")),
        (2, replace(SHORT, protect=5.0)),
        (3, replace(SHORT, protect=0.5, method="ot", seed=2)),
        (2, replace(SHORT, method="ot", schedule="share", average=8, anneal=0.25)),
    ]
    together = train(base, runs, placement)
    for run, result in zip(runs, together, strict=True):
        (alone,) = train(base, [run], placement)
        close(result, alone, 1e-10)
        assert result.loss_final == pytest.approx(alone.loss_final, rel=1e-10)
        assert (result.steps, result.status) == (alone.steps, alone.status)


@pytest.mark.parametrize("placement", ["down_proj@2", "all-linear"])
def test_under_muon_too_each_adapter_gets_what_it_would_get_alone(placement: str) -> None:
    base = tiny.base(dtype=torch.float64)
    runs = [(rank, replace(SHORT, optimizer="muon", seed=rank)) for rank in (1, 4, 3)]
    for run, result in zip(runs, train(base, runs, placement), strict=True):
        (alone,) = train(base, [run], placement)
        close(result, alone, 1e-9)


@pytest.mark.parametrize("served", [("q4_0",), ("float32", "q4_0")])
def test_facts_come_back_in_every_precision_that_they_are_trained_for(served: tuple[Precision, ...]) -> None:
    base = tiny.base()
    config = replace(UNTIL_RECALLED, margin=0.3, served_as=served)
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    (trained,) = train(base, [(8, config)])
    assert trained.recalled
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.state_dict().items())
    for precision in served:
        judged = served_as(base, precision)
        with trained.attached(judged.model):
            report = measure(judged, FACTS, decode=True)
        assert (report.dtype, report.certified) == (precision, len(FACTS))
        assert report.min_margin >= 0.29


def test_one_stack_has_one_optimizer_and_one_neutral_text() -> None:
    base = tiny.base()
    with pytest.raises(ConfigError, match="one `served_as`"):
        train(base, [(1, SHORT), (1, replace(SHORT, served_as=("q4_0",)))])
    with pytest.raises(ConfigError, match="one optimizer"):
        train(base, [(1, SHORT), (1, replace(SHORT, optimizer="muon"))])
    texts = [torch.randint(3, tiny.VOCABULARY, (4, 8)) for _ in range(2)]
    runs = [Run(1, placement_on(None, base.model), replace(SHORT, protect=1.0), neutral=text) for text in texts]
    with pytest.raises(ConfigError, match="same neutral text"):
        train_stack(base, FACTS, runs)


def test_protection_lowers_the_drift_on_the_text_it_is_given() -> None:
    base = tiny.base(dtype=torch.float64)
    neutral = torch.randint(3, tiny.VOCABULARY, (16, 10), generator=torch.Generator().manual_seed(9))
    where = placement_on(None, base.model)
    runs = [Run(4, where, replace(SHORT, steps=60, protect=weight), neutral=neutral) for weight in (0.0, 300.0)]
    bare, protected = train_stack(base, FACTS, runs)
    engine = Engine(base, FACTS, runs)
    assert engine.protection is not None
    drift = [float(engine.protection.drift(one.stack)) for one in (bare, protected)]
    with torch.no_grad():
        kl = [kl_on(base, one.stack, neutral) for one in (bare, protected)]
    assert drift[1] < 0.5 * drift[0]
    assert kl[1] < 0.8 * kl[0]


def test_the_protection_of_a_cell_with_a_budget_follows_its_losses_too() -> None:
    base = tiny.base()
    neutral = torch.randint(3, tiny.VOCABULARY, (4, 8))
    for protect, known in ((1.0, True), (0.0, False)):
        run = Run(2, placement_on(None, base.model), replace(SHORT, protect=protect), neutral=neutral)
        engine = Engine(base, FACTS, [run])
        step = engine.step(engine.start())
        assert bool(step.latest[:, engine.rows.mask].isfinite().all()) == known


def kl_on(base: Base, stack: AdapterStack, ids: torch.Tensor) -> float:
    """Mean KL(base || adapted), by the model's own logits."""
    log_p = base.model(ids).logits.log_softmax(-1)
    with stack.attached(base.model):
        log_q = base.model(ids).logits.log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_adapters_of_different_placements_train_together_as_they_would_alone() -> None:
    base = tiny.base(dtype=torch.float64)
    places = [placement_on(text, base.model) for text in ("down_proj@3", "q_proj,v_proj@2", "mlp@1", "up_proj@1+3")]
    runs = [(1, SHORT), (4, replace(SHORT, seed=1, weight_decay=0.1)), (3, SHORT), (2, replace(SHORT, dropout=0.1))]
    placed = [Run(rank, place, config) for place, (rank, config) in zip(places, runs, strict=True)]
    together = train_stack(base, FACTS, placed)
    for place, run, result in zip(places, runs, together, strict=True):
        (alone,) = train_stack(base, FACTS, runs_at(place, [run]))
        assert result.placement == place
        assert result.stack.sites == place.sites
        close(result, alone, 1e-10)
        assert result.loss_final == pytest.approx(alone.loss_final, rel=1e-10)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("method", ["sft", "ot"])
def test_a_stack_trains_what_peft_trains(family: str, method: str) -> None:
    model = tiny.model(family, dtype=torch.float64)
    placement = placement_on("c_proj@2" if family == "gpt2" else "down_proj@2+3", model)
    config = TrainConfig(method=method, steps=10, learning_rate=2e-2, scale=2.0)  # type: ignore[arg-type]
    base = tiny.wrap(model, tiny.tokenizer())
    (ours, _) = train_stack(base, FACTS, runs_at(placement, [(3, config), (5, replace(config, seed=7))]))
    tuned, losses = reference.train_with_peft(model, FACTS, placement, 3, config, batches=[range(len(FACTS))] * 10)
    assert losses[0] == pytest.approx(ours.loss_init, rel=1e-6)
    assert mean_loss(tuned) == pytest.approx(ours.loss_final, rel=1e-6)
    for site, (a, b) in zip(ours.stack.sites, ours.stack.pairs, strict=True):
        module = tuned.get_submodule(f"base_model.model.{site.path}")
        for theirs, mine in ((module.lora_A["default"].weight, a[0].T), (module.lora_B["default"].weight, b[0].T)):
            theirs = theirs.detach()
            assert float((theirs - mine).norm() / theirs.norm()) < 1e-6


METHODS = {
    "sw": {"method": "sw"},
    "sw position": {"method": "sw", "position": 1.0},
    "ot position": {"method": "ot", "position": 2.0},
    "ot focus": {"method": "ot", "focus": 1.0},
    "sft focus": {"method": "sft", "focus": 0.5},
    "ot margin": {"method": "ot", "margin": 0.3},
    "curriculum": {"method": "curriculum"},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_as_memft_loss_in_a_loop(name: str) -> None:
    model = tiny.model(dtype=torch.float64)
    facts = tiny.facts([(5, 4), (3, 7), (6, 2), (4, 5), (3, 3)])
    placement = placement_on("down_proj@2", model)
    settings = METHODS[name]
    config = TrainConfig(steps=14, learning_rate=5e-2, batch_size=2, **settings)  # type: ignore[arg-type]
    others = [(3, SHORT), (2, replace(SHORT, method="sw"))]
    base = tiny.wrap(model, tiny.tokenizer())
    runs = [(rank, replace(run, batch_size=2)) for rank, run in others]
    ours = train_stack(base, facts, runs_at(placement, [runs[0], (4, config), runs[1]]))[1]

    start = AdapterStack.start(placement.sites, [(4, config)], device="cpu", dtype="float64")
    tuned = get_peft_model(model, LoraConfig(**placement.lora_config(4, scale=config.scale))).to(torch.float64)
    module = tuned.get_submodule(f"base_model.model.{placement.sites[0].path}")
    module.lora_A["default"].weight.data = start.pairs[0][0][0].T.clone()
    trains = [module.lora_A["default"].weight, module.lora_B["default"].weight]
    optimizer = torch.optim.AdamW(trains, lr=config.learning_rate, weight_decay=0.0)
    state, order = WindowState(), row_order(len(facts), config)
    for step in range(config.steps):
        rows = next(order).tolist()
        time = max(len(facts[row].ids) for row in rows)
        ids, labels = torch.zeros(2, time, dtype=torch.long), torch.full((2, time), IGNORED)
        for place, fact in enumerate(facts[row] for row in rows):
            ids[place, : len(fact.ids)] = torch.tensor(fact.ids)
            labels[place, fact.prompt_length : len(fact.ids)] = torch.tensor(fact.target)
        window = {"state": state, "sample_ids": rows} if config.method == "sw" else {}
        optimizer.zero_grad()
        memft_loss(tuned(input_ids=ids).logits, labels, **settings, **window).backward()  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(trains, config.clip)
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / config.steps)
        optimizer.step()
    for theirs, mine in zip(trains, (ours.stack.pairs[0][0][0].T, ours.stack.pairs[0][1][0].T), strict=True):
        assert float((theirs.detach() - mine).norm() / theirs.detach().norm()) < 1e-5


def test_once_no_token_is_under_the_threshold_fallback_trains_on_all_and_zero_on_none() -> None:
    model = tiny.model(dtype=torch.float64)
    base = tiny.wrap(model, tiny.tokenizer())
    placement = placement_on(None, model)
    zero = TrainConfig(method="ot", steps=80, learning_rate=2e-2, schedule="constant")
    fallback = replace(zero, rule="fallback")
    (stopped, went_on) = train_stack(base, FACTS, runs_at(placement, [(8, zero), (8, fallback)]))
    assert stopped.recalled
    assert went_on.loss_final is not None
    assert stopped.loss_final is not None
    assert went_on.loss_final < 0.5 * stopped.loss_final
    tuned, _ = reference.train_with_peft(model, FACTS, placement, 8, fallback, batches=[range(len(FACTS))] * 80)
    assert mean_loss(tuned) == pytest.approx(went_on.loss_final, rel=1e-4)


@pytest.mark.parametrize("changes", [{"schedule": "share"}, {"average": 3}, {"anneal": 0.25}])
def test_a_rate_by_share_an_average_and_an_annealed_limit_are_what_their_definitions_say(
    changes: dict[str, Any],
) -> None:
    base = tiny.base(dtype=torch.float64)
    config = replace(SHORT, method="ot", steps=25, batch_size=2, margin=0.2, **changes)
    where = placement_on("down_proj@2", base.model)
    orders = row_order(len(FACTS), config)
    batches = [next(orders).tolist() for _ in range(config.steps)]
    alone = reference.train_alone(base.model, FACTS, where, 4, config, batches=batches)
    (ours,) = train_stack(base, FACTS, [Run(4, where, config)])
    for (a, b), (c, d) in zip(ours.stack.pairs, alone.pairs, strict=True):
        torch.testing.assert_close(a[0], c, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(b[0], d, rtol=1e-7, atol=1e-9)
    (plain,) = train_stack(base, FACTS, [Run(4, where, replace(config, schedule="linear", average=0, anneal=0.0))])
    assert not torch.allclose(ours.stack.pairs[0][1], plain.stack.pairs[0][1], rtol=1e-3)


def test_a_run_ends_once_its_average_is_recalled_though_its_latest_weights_are_not() -> None:
    """At a constant rate this large the latest weights keep pushing each other's tokens back."""
    base = tiny.base(dtype=torch.float64)
    config = TrainConfig(
        method="ot", until="recalled", margin=0.1, steps=800, learning_rate=0.2, schedule="constant", average=8,
        optimizer="muon", batch_size=1,
    )  # fmt: skip
    (averaged,) = train(base, [(8, config)])
    (latest,) = train(base, [(8, replace(config, average=0))])
    assert averaged.recalled
    assert averaged.steps < latest.steps
    with averaged.attached(base.model):
        assert max(float(reference.nll_of(base.model, fact).detach().max()) for fact in FACTS) < LN2 - 0.1


def test_the_loss_falls_and_the_base_does_not_change() -> None:
    base = tiny.base()
    (result,) = train(base, [(4, replace(SHORT, steps=60))])
    assert result.loss_final is not None
    assert result.loss_final < result.loss_init - 1
    assert tiny.wrap(base.model, base.tokenizer).fingerprint == base.fingerprint


def test_batches_of_rows_train_as_peft_on_the_same_batches() -> None:
    model = tiny.model(dtype=torch.float64)
    base = tiny.wrap(model, tiny.tokenizer())
    placement = placement_on("up_proj@3", model)
    config = TrainConfig(steps=9, learning_rate=2e-2, batch_size=2)
    (ours,) = train_stack(base, FACTS, runs_at(placement, [(2, config)]))
    order = row_order(len(FACTS), config)
    batches = [next(order).tolist() for _ in range(9)]
    tuned, _ = reference.train_with_peft(model, FACTS, placement, 2, config, batches=batches)
    assert mean_loss(tuned) == pytest.approx(ours.loss_final, rel=1e-6)


def test_until_recalled_stops_when_every_token_has_the_margin_and_not_before() -> None:
    base = tiny.base()
    config = TrainConfig(steps=600, until="recalled", margin=0.2, learning_rate=2e-2, method="ot", schedule="constant")
    placement = placement_on(None, base.model)
    one, two = train_stack(base, FACTS, runs_at(placement, [(8, config), (2, replace(config, steps=3))]))
    assert one.recalled
    assert one.steps < 600
    with one.attached(base.model), torch.no_grad():
        worst = max(float(reference.nll_of(base.model, fact).max()) for fact in FACTS)
    assert worst < LN2 - 0.2
    assert not two.recalled
    assert two.steps == 3
    budgeted = replace(config, until="budget", steps=one.steps - 1)
    (shorter,) = train_stack(base, FACTS, [Run(8, placement, budgeted)])
    with shorter.attached(base.model), torch.no_grad():
        assert max(float(reference.nll_of(base.model, fact).max()) for fact in FACTS) >= LN2 - 0.2


def test_a_budget_run_takes_exactly_its_steps_even_if_all_is_recalled() -> None:
    (result,) = train(tiny.base(), [(8, replace(SHORT, steps=150))])
    assert result.recalled
    assert result.steps == 150


def test_tokens_forwarded_are_those_of_the_rows_of_every_step() -> None:
    base = tiny.base()
    config = replace(SHORT, batch_size=2, steps=7)
    orders = row_order(len(FACTS), config)
    rows = torch.cat([next(orders) for _ in range(7)]).tolist()
    once = sum(len(FACTS[row].ids) for row in rows)
    other = replace(config, method="ot", seed=1, steps=3)
    (ours, shorter) = train(base, [(2, config), (3, other)])
    assert ours.tokens_forwarded == once
    assert shorter.tokens_forwarded == train(base, [(3, other)])[0].tokens_forwarded


def test_a_fallback_forwards_the_rows_of_its_step_twice() -> None:
    base = tiny.base()
    zero = TrainConfig(method="ot", steps=80, learning_rate=2e-2, schedule="constant")
    stopped, went_on = train(base, [(8, zero), (8, replace(zero, rule="fallback"))])
    all_rows = sum(len(fact.ids) for fact in FACTS)
    assert stopped.tokens_forwarded == 80 * all_rows
    (until,) = train(base, [(8, replace(zero, until="recalled"))])
    after = 80 - until.steps
    assert 80 * all_rows < went_on.tokens_forwarded <= (80 + after) * all_rows


def test_tokens_forwarded_count_the_checks_of_all_rows_too() -> None:
    """`recalled` is confirmed at a step that is then not taken: its rows and the check come on top."""
    config = TrainConfig(method="ot", until="recalled", steps=80, learning_rate=2e-2, schedule="constant")
    (ended,) = train(tiny.base(), [(8, config)])
    assert ended.recalled
    assert ended.steps < 80
    assert ended.tokens_forwarded == (ended.steps + 2) * sum(len(fact.ids) for fact in FACTS)


def test_a_diverging_run_leaves_the_stack_and_the_others_finish_as_if_alone() -> None:
    base = tiny.base()
    wild = replace(SHORT, learning_rate=1e38, clip=0.0)
    steady, broken = train(base, [(2, SHORT), (2, wild)])
    assert (broken.status, broken.loss_final) == ("diverged", None)
    assert 0 < broken.steps < SHORT.steps
    assert f"at step {broken.steps}" in broken.message
    (alone,) = train(base, [(2, SHORT)])
    assert steady.status == "finished"
    close(steady, alone, 1e-5)


@pytest.mark.parametrize(
    ("rank", "message"),
    [(0, "must be at least 1"), (-3, "must be at least 1"), (33, "above 32, the smaller dimension of")],
)
def test_impossible_ranks_are_refused_before_training(rank: int, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        train(tiny.base(), [(2, SHORT), (rank, SHORT)])


def test_a_stack_shares_its_batch_size() -> None:
    with pytest.raises(ConfigError, match="one batch_size"):
        train(tiny.base(), [(2, SHORT), (2, replace(SHORT, batch_size=1))])


def test_a_base_in_training_mode_with_checkpointing_gives_the_same_result() -> None:
    model = tiny.model()
    (expected,) = train(tiny.wrap(model, tiny.tokenizer()), [(2, SHORT)])
    model.train()
    model.gradient_checkpointing_enable()
    (found,) = train(tiny.wrap(model, tiny.tokenizer()), [(2, SHORT)])
    close(found, expected, 0.0)
    assert model.training


def test_an_adapter_starts_the_same_whatever_it_is_stacked_with() -> None:
    base = tiny.base()
    sites = placement_on("all-linear", base.model).sites
    alone = AdapterStack.start(sites, [(3, SHORT)], device="cpu", dtype="float32")
    among = AdapterStack.start(sites, [(8, replace(SHORT, seed=5)), (3, SHORT)], device="cpu", dtype="float32")
    for (a, b), (c, d) in zip(alone.pairs, among.select([1]).pairs, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert not b.any()


def test_the_paper_starts_a_with_a_bound_of_one_over_root_rank() -> None:
    base = tiny.base()
    site = placement_on("mlp@1", base.model).sites
    for init, bound in (("paper", 1 / math.sqrt(4)), ("peft", 1 / math.sqrt(32))):
        config = replace(SHORT, init=init)  # type: ignore[arg-type]
        a: Tensor = AdapterStack.start(site, [(4, config)], device="cpu", dtype="float32").pairs[0][0]
        assert 0.9 * bound < float(a.abs().max()) <= bound


@pytest.mark.parametrize(("scaling", "use_rslora"), [("lora", False), ("rslora", True)])
def test_the_factor_is_that_of_peft_with_the_same_alpha(scaling: str, use_rslora: bool) -> None:
    model = tiny.model()
    settings = {"r": 3, "lora_alpha": 8, "use_rslora": use_rslora, "target_modules": ["up_proj"]}
    theirs = get_peft_model(model, LoraConfig(**settings)).get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    ours = replace(SHORT, scale=8.0, scaling=scaling)  # type: ignore[arg-type]
    assert ours.factor(3) == pytest.approx(theirs.scaling["default"], rel=1e-15)
    sites = placement_on("mlp@1", tiny.model()).sites
    stack = AdapterStack.start(sites, [(3, ours), (2, SHORT)], device="cpu", dtype="float64")
    assert stack.scale.flatten().tolist() == [ours.factor(3), SHORT.scale]


def test_progress_counts_what_is_left() -> None:
    seen: list[StackProgress] = []
    base = tiny.base()
    train_stack(
        base,
        FACTS,
        runs_at(placement_on(None, base.model), [(2, SHORT), (1, replace(SHORT, steps=4))]),
        on_step=seen.append,
    )
    assert [p.step for p in seen] == list(range(1, 13))
    assert [p.adapters for p in seen] == [2] * 4 + [1] * 8
    assert all(p.steps == 12 and 0 <= p.ordered <= 1 for p in seen)
    assert seen[-1].loss < seen[0].loss


@contextmanager
def room_for(base: Base, rows: int) -> Iterator[list[int]]:
    """The last layer runs out of memory with more than `rows` rows; yields all sizes tried."""
    tried: list[int] = []

    def check(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tried.append(len(args[0]))
        if len(args[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    handle = base.model.model.layers[-1].register_forward_pre_hook(check)
    try:
        yield tried
    finally:
        handle.remove()


SHORT_OF_MEMORY = [
    (2, replace(SHORT, batch_size=2)),
    (4, replace(SHORT, batch_size=2, method="ot", rule="fallback", seed=1)),
    (1, replace(SHORT, batch_size=2, dropout=0.1)),
    (3, replace(SHORT, batch_size=2, method="sw", steps=7)),
    (3, replace(SHORT, batch_size=2, method="ot", until="recalled", learning_rate=5e-2, steps=30)),
]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 9])
def test_a_stack_that_does_not_fit_continues_in_parts_with_the_same_result(rows: int) -> None:
    base = tiny.base(dtype=torch.float64)
    placement = placement_on("down_proj@1+2", base.model)
    expected = train_stack(base, FACTS, runs_at(placement, SHORT_OF_MEMORY))
    with room_for(base, rows) as tried, pytest.warns(UserWarning, match="do not fit in memory: continuing with"):
        found = train_stack(base, FACTS, runs_at(placement, SHORT_OF_MEMORY))
    assert max(tried) > rows
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.steps, ours.status, ours.recalled) == (theirs.steps, theirs.status, theirs.recalled)
        assert ours.loss_final == pytest.approx(theirs.loss_final, rel=1e-10)
        close(ours, theirs, 1e-9)


def test_running_out_of_memory_in_the_middle_costs_no_step() -> None:
    base = tiny.base(dtype=torch.float64)
    placement = placement_on(None, base.model)
    expected = train_stack(base, FACTS, runs_at(placement, SHORT_OF_MEMORY))
    with ExitStack() as hooks:
        hooks.enter_context(pytest.warns(UserWarning, match="5 adapters at once"))

        def shrink(progress: StackProgress) -> None:
            if progress.step == 4:
                hooks.enter_context(room_for(base, 6))

        found = train_stack(base, FACTS, runs_at(placement, SHORT_OF_MEMORY), on_step=shrink)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.steps == theirs.steps
        close(ours, theirs, 1e-9)


def test_one_row_of_one_adapter_that_does_not_fit_is_an_error_a_person_can_act_on() -> None:
    base = tiny.base()
    full = torch.OutOfMemoryError("CUDA out of memory")

    def never(*_args: object) -> None:
        raise full

    placement = placement_on(None, base.model)

    def fill(progress: StackProgress) -> None:
        if progress.step == 2:
            base.model.model.layers[-1].register_forward_pre_hook(never)

    sentence = "One adapter with one row of the facts does not fit in memory"
    with pytest.warns(UserWarning, match="continuing with"), pytest.raises(TrainError, match=sentence):
        train_stack(base, FACTS, runs_at(placement, [(2, SHORT), (3, SHORT)]), on_step=fill)


REAL = """
import resource, warnings, torch
from helpers import tiny
from helpers.runs import runs_at
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.training.stack import train_stack
torch.set_num_threads(1)
base = tiny.base(max_position_embeddings=4096, attn_implementation="eager")
facts = tiny.facts([(4, 1500)])
placement = placement_on("down_proj@1", base.model)
train_stack(base, facts, runs_at(placement, [(2, TrainConfig(steps=1))]))
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 700 * 2**20, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    trained = train_stack(base, facts, runs_at(placement, [(2, TrainConfig(steps=2, seed=k)) for k in range(12)]))
assert any("do not fit in memory" in str(w.message) for w in said), [str(w.message) for w in said]
assert [t.steps for t in trained] == [2] * 12 and all(t.status == "finished" for t in trained)
"""


@pytest.mark.slow
def test_a_machine_that_really_runs_out_of_memory_trains_in_parts() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", REAL], env=env, check=True)


FLOORED = (*FACTS[:2], replace(FACTS[2], floor=(6.0, 4.0)))
"""Of the last fact nothing must come back."""


def a_start(base: Base, rank: int = 2, placement: str = "down_proj@2", **changes: Any) -> AdapterStack:
    """An adapter that has stored all facts in part."""
    config = TrainConfig(steps=15, learning_rate=2e-2, **changes)
    (trained,) = train(base, [(rank, config)], placement)
    return trained.stack


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_adapters_that_go_on_and_new_ones_get_together_what_they_get_alone(optimizer: Any) -> None:
    base = tiny.base(dtype=torch.float64)
    where = placement_on("down_proj@2", base.model)
    config = replace(SHORT, method="ot", anneal=0.25, schedule="share", until="recalled", optimizer=optimizer, steps=9)
    runs = [
        Run(2, where, config),
        Run(4, where, replace(config, seed=1), start=a_start(base)),
        Run(3, where, replace(config, protect=5.0, average=2), start=a_start(base, 3, seed=3)),
        Run(2, where, replace(config, method="sft"), start=a_start(base)),
    ]
    together = train_stack(base, FLOORED, runs)
    assert len({one.loss_init for one in together}) == 3
    for run, result in zip(runs, together, strict=True):
        (alone,) = train_stack(base, FLOORED, [run])
        close(result, alone, 1e-9)
        assert result.loss_init == pytest.approx(alone.loss_init, rel=1e-9)
        assert result.loss_final == pytest.approx(alone.loss_final, rel=1e-9)
        assert (result.steps, result.tokens_forwarded) == (alone.steps, alone.tokens_forwarded)


def test_each_adapter_begins_with_the_loss_of_what_it_goes_on_from() -> None:
    base = tiny.base()
    where, start = placement_on("down_proj@2", base.model), a_start(base)
    new, going_on = train_stack(base, FACTS, [Run(2, where, SHORT), Run(2, where, SHORT, start=start)])
    assert new.loss_init == pytest.approx(mean_loss(base.model), rel=1e-5)
    with start.attached(base.model):
        assert going_on.loss_init == pytest.approx(mean_loss(base.model), rel=1e-5)
    assert going_on.loss_init < new.loss_init - 1


def test_a_training_with_nothing_left_to_do_changes_nothing_and_says_so() -> None:
    base = tiny.base()
    config = TrainConfig(method="ot", until="recalled", margin=0.1, steps=300, learning_rate=2e-2, protect=8.0)
    where = placement_on("down_proj@2", base.model)
    (first,) = train_stack(base, FACTS, [Run(8, where, config)])
    assert first.recalled
    (again,) = train_stack(base, FACTS, [Run(8, where, config, start=first.stack)])
    assert (again.steps, again.recalled, again.protection) == (0, True, 8.0)
    assert all(torch.equal(a, b) for a, b in zip(again.stack.tensors, first.stack.tensors, strict=True))


def test_a_higher_rank_keeps_what_is_held_while_it_learns_more() -> None:
    base = tiny.base()
    where = placement_on("down_proj@2", base.model)
    config = TrainConfig(method="ot", until="recalled", margin=0.1, steps=400, learning_rate=2e-2, schedule="share")
    (first,) = train_stack(base, FACTS[:2], [Run(4, where, config)])
    (grown,) = train_stack(base, FACTS, [Run(9, where, config, start=first.stack)])
    (anew,) = train_stack(base, FACTS, [Run(9, where, config)])
    assert grown.recalled
    assert grown.rank == 9
    assert grown.tokens_forwarded < anew.tokens_forwarded


def test_what_must_not_come_back_is_trained_to_its_floors_while_the_rest_stays() -> None:
    base = tiny.base()
    where = placement_on("down_proj@2", base.model)
    config = TrainConfig(method="ot", until="recalled", margin=0.1, steps=600, learning_rate=2e-2, schedule="share")
    (first,) = train_stack(base, FACTS, [Run(8, where, config)])
    (second,) = train_stack(base, FLOORED, [Run(8, where, config, start=first.stack)])
    assert second.recalled
    assert second.steps > 0
    with second.attached(base.model), torch.no_grad():
        held = torch.cat([reference.nll_of(base.model, fact) for fact in FLOORED[:2]])
        gone = reference.nll_of(base.model, FLOORED[2])
    assert float(held.max()) < LN2 - 0.1
    assert bool((gone > torch.tensor(FLOORED[2].floor) - 1e-4).all())
    assert second.loss_final == pytest.approx(float(held.mean()), rel=1e-4)


def test_steps_that_see_nothing_to_recall_are_steps_too() -> None:
    base = tiny.base()
    seen: list[StackProgress] = []
    config = replace(SHORT, method="ot", batch_size=1, steps=6)
    run = Run(2, placement_on("down_proj@2", base.model), config, start=a_start(base))
    (trained,) = train_stack(base, FLOORED, [run], on_step=seen.append)
    assert trained.status == "finished"
    assert sum(one.loss == one.ordered == one.stubborn == 0 for one in seen) == 2  # one step of an epoch of three
    (only,) = train_stack(base, FLOORED[2:], [run], on_step=seen.append)
    assert (only.status, only.loss_init, only.loss_final) == ("finished", 0.0, 0.0)


def test_an_adapter_that_does_not_fit_is_no_start() -> None:
    base = tiny.base()
    where, other = placement_on("down_proj@2", base.model), placement_on("down_proj@1", base.model)
    start = a_start(base)
    two = AdapterStack.joined([start, start])
    for run in (Run(1, where, SHORT, start=start), Run(2, other, SHORT, start=start), Run(2, where, SHORT, start=two)):
        with pytest.raises(ConfigError, match="cannot go on from .* of this rank or a smaller one, at the same"):
            train_stack(base, FACTS, [run])


def test_the_protection_at_the_end_is_what_its_halvings_left() -> None:
    base = tiny.base()
    short, unprotected = train(base, [(2, replace(SHORT, protect=64.0)), (2, SHORT)])
    assert 64.0 * 2 ** (-12 / 4) <= short.protection <= 64.0 * 2 ** (-12 / 32)
    assert unprotected.protection == 0.0
