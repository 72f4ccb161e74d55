from __future__ import annotations

import pytest
import torch

from helpers import tiny
from helpers.adapters import trained
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import Scaling, TrainConfig


def test_the_number_of_parameters_is_that_of_the_stack() -> None:
    placement = placement_on("all-linear", tiny.model())
    assert placement.parameters(3) == sum(t.numel() for t in trained(placement).tensors)


def test_joined_stacks_keep_every_adapter_as_it_was_alone() -> None:
    placement = placement_on("all-linear", tiny.model())
    stacks = [trained(placement, rank) for rank in (3, 1, 2)]
    joined = AdapterStack.joined(stacks)
    assert (len(joined), joined.ranks) == (3, (3, 1, 2))
    for place, alone in enumerate(stacks):
        again = joined.select([place])
        assert (again.ranks, again.scale.tolist()) == (alone.ranks, alone.scale.tolist())
        assert all(torch.equal(one, other) for one, other in zip(again.tensors, alone.tensors, strict=True))


@pytest.mark.parametrize("scaling", ["constant", "lora", "rslora"])
@pytest.mark.parametrize("rank", [3, 4, 7])
def test_an_adapter_goes_on_as_the_same_function_at_its_rank_and_at_a_higher_one(scaling: Scaling, rank: int) -> None:
    model = tiny.model()
    placement = placement_on("all-linear", model)
    old = trained(placement, 3)
    for _, b in old.pairs:
        b.mul_(0.02)
    before = [tensor.clone() for tensor in old.tensors]
    runs = [(2, TrainConfig()), (rank, TrainConfig(seed=5, scale=8.0, scaling=scaling))]
    fresh, stack = (AdapterStack.start(placement.sites, runs, device="cpu", dtype="float32") for _ in range(2))
    stack.continue_from(old, 1)

    ids = torch.randint(3, tiny.VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        with old.attached(model):
            wanted = model(ids).logits
        with stack.select([1]).attached(model):
            found = model(ids).logits
        assert float((wanted - model(ids).logits).abs().max()) > 0.5
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    for new, plain in zip(stack.pairs, fresh.pairs, strict=True):
        assert torch.equal(new[0][1, :, 3:], plain[0][1, :, 3:])
        assert not new[1][1, 3:].any()
        assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(new, plain, strict=True))
    assert all(torch.equal(now, then) for now, then in zip(old.tensors, before, strict=True))
