"""A step in parts without any trainer, with accelerate and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memlaw.core.config import Rule
from memlaw.core.errors import ConfigError
from memlaw.integrations.samples import sample_ids
from memlaw.integrations.step import StepMean, gradient_leaves
from memlaw.losses import IGNORED, MemFTSums


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    yield
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)


def part(weight: Tensor, losses: list[float], weights: list[float]) -> MemFTSums:
    return MemFTSums.from_tokens(
        weight * torch.tensor(losses, dtype=weight.dtype), torch.tensor(weights, dtype=weight.dtype)
    )


PARTS = st.lists(
    st.lists(st.tuples(st.floats(0.1, 9), st.sampled_from([0.0, 0.0, 0.3, 1.0])), max_size=3), min_size=1, max_size=5
)


@pytest.mark.parametrize("accelerated", [True, False])
@given(parts=PARTS, rule=st.sampled_from(["zero", "fallback"]))
def test_the_parts_of_a_step_add_up_to_its_mean(
    accelerated: bool, parts: list[list[tuple[float, float]]], rule: Rule
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    if accelerated:
        Accelerator(cpu=True)
    weight, mean = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), StepMean(rule)
    for _ in range(2):  # the second step starts with gradients of zero instead of None
        whole = part(weight, [loss for p in parts for loss, _ in p], [w for p in parts for _, w in p]).mean(rule)
        (wanted,) = torch.autograd.grad(whole, weight)
        value = 0.0
        for place, tokens in enumerate(parts):
            if accelerated:
                GradientState()._set_sync_gradients(place == len(parts) - 1)
            loss = mean.add(part(weight, [loss for loss, _ in tokens], [w for _, w in tokens]))
            loss.backward()
            value += loss.item()
        assert weight.grad is not None
        assert weight.grad.item() == pytest.approx(wanted.item(), rel=1e-9, abs=1e-9)
        assert value == pytest.approx(whole.item(), rel=1e-9, abs=1e-9)
        weight.grad.zero_()


def test_the_leaves_of_a_loss_are_the_weights_that_take_a_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1))
    model[2].requires_grad_(False)
    loss = checkpoint(model, torch.randn(2, 3), use_reentrant=False).sum()
    assert {id(leaf) for leaf in gradient_leaves(loss)} == {id(p) for p in model.parameters() if p.requires_grad}
    assert list(gradient_leaves(torch.tensor(1.0))) == []


def test_weights_behind_reentrant_checkpointing_are_reported_missing() -> None:
    hidden = checkpoint(nn.Linear(3, 1), torch.randn(2, 3, requires_grad=True), use_reentrant=True)
    with pytest.raises(ConfigError, match="Reentrant gradient checkpointing hides"):
        list(gradient_leaves(hidden.sum()))


def test_a_sample_has_one_id_wherever_it_stands() -> None:
    first, second = [7, 8, 9, 10], [7, 8, 11]
    labels_first, labels_second = [IGNORED, IGNORED, 9, 10], [IGNORED, IGNORED, 11]
    padded = {"input_ids": torch.tensor([first, [*second, 0]])}
    (a, *_), (b, *_) = sample_ids(padded, torch.tensor([labels_first, [*labels_second, IGNORED]])).tolist()
    assert a != b
    left = {"input_ids": torch.tensor([[0, *second]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])}
    assert sample_ids(left, torch.tensor([[IGNORED, *labels_second]])).tolist() == [[b] * 4]
    packed = {"input_ids": torch.tensor([second + first]), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]])}
    assert sample_ids(packed, torch.tensor([labels_second + labels_first])).tolist() == [[b] * 3 + [a] * 4]


def test_a_batch_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no input_ids"):
        sample_ids({"inputs_embeds": torch.zeros(1, 2, 3)}, torch.zeros(1, 2, dtype=torch.long))
