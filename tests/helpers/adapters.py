from __future__ import annotations

import torch

from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig


def trained(placement: Placement, rank: int = 3, scale: float = 1.5) -> AdapterStack:
    """An adapter with weights as training leaves them: both halves away from zero."""
    stack = AdapterStack.start(placement.sites, [(rank, TrainConfig(scale=scale))], device="cpu", dtype="float32")
    stream = torch.Generator().manual_seed(0)
    return AdapterStack(
        stack.sites, stack.ranks, stack.scale,
        [(a, torch.randn(b.shape, generator=stream)) for a, b in stack.pairs],
    )  # fmt: skip
