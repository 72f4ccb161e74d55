from __future__ import annotations

import torch

from helpers import tiny
from helpers.adapters import trained
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack


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
