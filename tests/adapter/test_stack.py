from __future__ import annotations

from helpers import tiny
from helpers.adapters import trained
from memlaw.adapter.on_model import placement_on


def test_the_number_of_parameters_is_that_of_the_stack() -> None:
    placement = placement_on("all-linear", tiny.model())
    assert placement.parameters(3) == sum(t.numel() for t in trained(placement).tensors)
