"""Offloaded layers compute the same as before. Here the weights move from the CPU to the CPU."""

from __future__ import annotations

import pytest
import torch

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.diagnosis.measure import measure
from memlaw.model.offload import below, evicted, offloaded
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

FACTS = tiny.facts([(5, 4), (3, 7)])


@pytest.mark.parametrize("family", ["qwen3", "llama-tied", "gemma3", "gpt2"])
def test_training_and_recall_are_the_same_with_the_prefix_offloaded(family: str) -> None:
    base = tiny.base(family)
    placement = placement_on("mlp@2", base.model)
    runs = [Run(2, placement, TrainConfig(steps=6))]
    (expected,) = train_stack(base, FACTS, runs)
    with expected.attached(base.model):
        report = measure(base, FACTS, decode=True)
    with offloaded(below(base.model, 2), "cpu"):
        evicted_weights = [p for module in below(base.model, 2) for p in module.parameters()]
        assert evicted_weights
        assert all(p.is_meta for p in evicted_weights)
        (offloaded_run,) = train_stack(base, FACTS, runs)
        with offloaded_run.attached(base.model):
            again = measure(base, FACTS, decode=True)
    for ours, theirs in zip(offloaded_run.stack.tensors, expected.stack.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # rounding depends on where weights lie
    assert again.mean_loss == pytest.approx(report.mean_loss, rel=1e-6)
    assert [item.first_failure for item in again.items] == [item.first_failure for item in report.items]
    assert tiny.wrap(base.model, base.tokenizer).fingerprint == base.fingerprint


def test_a_head_made_of_the_embedding_keeps_it() -> None:
    tied, untied = tiny.model("llama-tied"), tiny.model("llama")
    assert len(below(tied, 2)) == 2
    assert len(below(untied, 2)) == 3


def test_on_the_cpu_eviction_changes_nothing_and_warns() -> None:
    base = tiny.base()
    with pytest.warns(UserWarning, match="already in main memory, so evicting"), evicted(base, 2, wanted=True):
        assert not any(p.is_meta for p in base.model.parameters())
