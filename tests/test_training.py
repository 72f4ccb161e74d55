from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import reference
import tiny
import torch
from torch import Tensor

from memlaw.adapter import AdapterStack, parse_placement
from memlaw.errors import AdapterError, ConfigError
from memlaw.model import Base
from memlaw.records import LN2, TrainConfig
from memlaw.training import StackProgress, Trained, train_stack
from memlaw.training.optimizer import StackedAdamW, learning_rate
from memlaw.training.rows import row_order

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
        return train_stack(base, FACTS, parse_placement(placement, base.model), runs)


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["down_proj@2", "mlp@1", "q_proj,v_proj", "all-linear"])
def test_a_stack_gives_each_adapter_what_it_would_get_alone(placement: str) -> None:
    base = tiny.base(dtype=torch.float64)
    runs = [
        (1, SHORT),
        (4, replace(SHORT, method="ot", seed=1)),
        (3, replace(SHORT, learning_rate=1e-3, schedule="constant", clip=0.1, scale=2.0)),
        (4, replace(SHORT, steps=5, dropout=0.1, weight_decay=0.1, init="paper")),
    ]
    together = train(base, runs, placement)
    for run, result in zip(runs, together, strict=True):
        (alone,) = train(base, [run], placement)
        close(result, alone, 1e-10)
        assert result.loss_final == pytest.approx(alone.loss_final, rel=1e-10)
        assert (result.steps, result.status) == (alone.steps, alone.status)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("method", ["sft", "ot"])
def test_a_stack_trains_what_peft_trains(family: str, method: str) -> None:
    model = tiny.model(family, dtype=torch.float64)
    placement = parse_placement("c_proj@2" if family == "gpt2" else "down_proj@2+3", model)
    config = TrainConfig(method=method, steps=10, learning_rate=2e-2, scale=2.0)  # type: ignore[arg-type]
    base = tiny.wrap(model, tiny.tokenizer())
    (ours, _) = train_stack(base, FACTS, placement, [(3, config), (5, replace(config, seed=7))])
    tuned, losses = reference.train_with_peft(model, FACTS, placement, 3, config, batches=[range(len(FACTS))] * 10)
    assert losses[0] == pytest.approx(ours.loss_init, rel=1e-6)
    assert mean_loss(tuned) == pytest.approx(ours.loss_final, rel=1e-6)
    for site, (a, b) in zip(ours.stack.sites, ours.stack.pairs, strict=True):
        module = tuned.get_submodule(f"base_model.model.{site.path}")
        for theirs, mine in ((module.lora_A["default"].weight, a[0].T), (module.lora_B["default"].weight, b[0].T)):
            theirs = theirs.detach()
            assert float((theirs - mine).norm() / theirs.norm()) < 1e-6


def test_once_nothing_is_under_the_threshold_fallback_trains_on_all_and_zero_on_nothing() -> None:
    model = tiny.model(dtype=torch.float64)
    base = tiny.wrap(model, tiny.tokenizer())
    placement = parse_placement(None, model)
    zero = TrainConfig(method="ot", steps=80, learning_rate=2e-2, schedule="constant")
    fallback = replace(zero, rule="fallback")
    (stopped, went_on) = train_stack(base, FACTS, placement, [(8, zero), (8, fallback)])
    assert stopped.recalled
    assert went_on.loss_final is not None
    assert stopped.loss_final is not None
    assert went_on.loss_final < 0.5 * stopped.loss_final
    tuned, _ = reference.train_with_peft(model, FACTS, placement, 8, fallback, batches=[range(len(FACTS))] * 80)
    assert mean_loss(tuned) == pytest.approx(went_on.loss_final, rel=1e-4)


def test_the_loss_falls_and_the_base_stays() -> None:
    base = tiny.base()
    (result,) = train(base, [(4, replace(SHORT, steps=60))])
    assert result.loss_final is not None
    assert result.loss_final < result.loss_init - 1
    assert tiny.wrap(base.model, base.tokenizer).fingerprint == base.fingerprint


def test_stacked_adamw_is_torch_adamw() -> None:
    stream = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 4, 2, generator=stream, dtype=torch.float64) for _ in range(2)]
    rates, decays = torch.tensor([1e-2, 1e-1, 0.0]), torch.tensor([0.0, 0.1, 0.5])
    copies = [[t[k].clone().requires_grad_(True) for t in tensors] for k in range(3)]
    theirs = [torch.optim.AdamW(copies[k], lr=float(rates[k]), weight_decay=float(decays[k])) for k in range(3)]
    ours = StackedAdamW(tensors)
    for _ in range(5):
        gradients = [torch.randn(t.shape, generator=stream, dtype=torch.float64) for t in tensors]
        ours.step(tensors, gradients, rates, decays)
        for k, optimizer in enumerate(theirs):
            for parameter, gradient in zip(copies[k], gradients, strict=True):
                parameter.grad = gradient[k]
            optimizer.step()
    for k in range(3):
        for tensor, copy in zip(tensors, copies[k], strict=True):
            torch.testing.assert_close(tensor[k], copy.detach(), rtol=1e-6, atol=1e-9)


# --- schedule, order, end --------------------------------------------------------------------------------------------


def test_the_published_schedule_falls_linearly_to_zero_without_warm_up() -> None:
    config = TrainConfig(steps=4, learning_rate=1.0)
    assert [learning_rate(config, step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert learning_rate(replace(config, schedule="constant"), 3) == 1.0


def test_every_epoch_shows_every_row_once_in_a_new_order() -> None:
    order = row_order(7, TrainConfig(batch_size=3))
    seen: list[int] = torch.cat([next(order) for _ in range(14)]).tolist()
    epochs = [seen[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_batches_of_rows_train_what_peft_trains_on_the_same_batches() -> None:
    model = tiny.model(dtype=torch.float64)
    base = tiny.wrap(model, tiny.tokenizer())
    placement = parse_placement("up_proj@3", model)
    config = TrainConfig(steps=9, learning_rate=2e-2, batch_size=2)
    (ours,) = train_stack(base, FACTS, placement, [(2, config)])
    order = row_order(len(FACTS), config)
    batches = [next(order).tolist() for _ in range(9)]
    tuned, _ = reference.train_with_peft(model, FACTS, placement, 2, config, batches=batches)
    assert mean_loss(tuned) == pytest.approx(ours.loss_final, rel=1e-6)


def test_until_recalled_stops_when_every_token_has_the_margin_and_not_before() -> None:
    base = tiny.base()
    config = TrainConfig(steps=600, until="recalled", margin=0.2, learning_rate=2e-2, method="ot", schedule="constant")
    placement = parse_placement(None, base.model)
    one, two = train_stack(base, FACTS, placement, [(8, config), (2, replace(config, steps=3))])
    assert one.recalled
    assert one.steps < 600
    with one.attached(base.model), torch.no_grad():
        worst = max(float(reference.nll_of(base.model, fact).max()) for fact in FACTS)
    assert worst < LN2 - 0.2
    assert not two.recalled
    assert two.steps == 3
    (shorter,) = train_stack(base, FACTS, placement, [(8, replace(config, until="budget", steps=one.steps - 1))])
    with shorter.attached(base.model), torch.no_grad():
        assert max(float(reference.nll_of(base.model, fact).max()) for fact in FACTS) >= LN2 - 0.2


def test_a_budget_run_takes_exactly_its_steps_however_well_it_knows_the_facts() -> None:
    (result,) = train(tiny.base(), [(8, replace(SHORT, steps=150))])
    assert result.recalled
    assert result.steps == 150


# --- faults ----------------------------------------------------------------------------------------------------------


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
    ("rank", "message"), [(0, "needs at least 1"), (-3, "needs at least 1"), (33, "above 32, the smaller dimension of")]
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
    sites = parse_placement("all-linear", base.model).sites
    alone = AdapterStack.start(sites, [(3, SHORT)], device="cpu", dtype="float32")
    among = AdapterStack.start(sites, [(8, replace(SHORT, seed=5)), (3, SHORT)], device="cpu", dtype="float32")
    for (a, b), (c, d) in zip(alone.pairs, among.select([1]).pairs, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert not b.any()


def test_the_paper_starts_a_with_a_bound_of_one_over_root_rank() -> None:
    base = tiny.base()
    site = parse_placement("mlp@1", base.model).sites
    for init, bound in (("paper", 1 / math.sqrt(4)), ("peft", 1 / math.sqrt(32))):
        config = replace(SHORT, init=init)  # type: ignore[arg-type]
        a: Tensor = AdapterStack.start(site, [(4, config)], device="cpu", dtype="float32").pairs[0][0]
        assert 0.9 * bound < float(a.abs().max()) <= bound


def test_progress_counts_what_is_left() -> None:
    seen: list[StackProgress] = []
    base = tiny.base()
    train_stack(
        base, FACTS, parse_placement(None, base.model), [(2, SHORT), (1, replace(SHORT, steps=4))], on_step=seen.append
    )
    assert [p.step for p in seen] == list(range(1, 13))
    assert [p.adapters for p in seen] == [2] * 4 + [1] * 8
    assert all(p.steps == 12 and 0 <= p.ordered <= 1 for p in seen)
    assert seen[-1].loss < seen[0].loss
