"""What the adapters of a stack do differently, as one tensor for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.core.config import TrainConfig
from memlaw.core.recall import LN2


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings of K adapters, each [K]; numbers in float64."""

    every: Tensor
    """bool, whether all target tokens have weight: method sft."""
    windowed: Tensor
    """bool, whether weights come from a sliding window: method sw."""
    position: Tensor
    focus: Tensor
    fallback: Tensor
    """bool, whether nothing left under the threshold means training on all tokens after all."""
    until_recalled: Tensor
    """bool, whether the run ends once every token is ordered with the margin."""
    limit: Tensor
    """ln 2 - margin, in nats: what every token has to be below."""
    clip: Tensor
    """Largest gradient norm; infinite for none."""
    decay: Tensor
    rate: Tensor
    """Step size at the first step."""
    steps: Tensor
    falling: Tensor
    """1 for a step size that falls linearly to 0 over `steps`, 0 for a constant one."""

    @classmethod
    def of(cls, configs: Sequence[TrainConfig], device: str) -> Settings:
        def each(values: Sequence[float | bool], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            every=each([c.method == "sft" for c in configs], torch.bool),
            windowed=each([c.method == "sw" for c in configs], torch.bool),
            position=each([c.position for c in configs]),
            focus=each([c.focus for c in configs]),
            fallback=each([c.rule == "fallback" for c in configs], torch.bool),
            until_recalled=each([c.until == "recalled" for c in configs], torch.bool),
            limit=each([LN2 - c.margin for c in configs]),
            clip=each([c.clip or torch.inf for c in configs]),
            decay=each([c.weight_decay for c in configs]),
            rate=each([c.learning_rate for c in configs]),
            steps=each([c.steps for c in configs]),
            falling=each([c.schedule == "linear" for c in configs]),
        )

    def rates(self, step: int) -> Tensor:
        """Step sizes [K] at `step` (from 0)."""
        return self.rate * (1 - self.falling * step / self.steps)
