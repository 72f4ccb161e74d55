"""Settings in which the adapters of a stack differ, as one tensor for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.core.config import TrainConfig
from memlaw.core.recall import LN2

HALVINGS = 30
"""From any useful weight down to none: by a factor of a billion."""


@dataclass(frozen=True, eq=False)
class PerAdapter:
    """Settings of K adapters, each [K]; numbers in float64."""

    every: Tensor
    """bool, method sft: every target token has weight."""
    windowed: Tensor
    """bool, method sw: weights come from a sliding window."""
    position: Tensor
    focus: Tensor
    fallback: Tensor
    """bool, rule fallback: train on all tokens once none is left under the threshold."""
    until_recalled: Tensor
    """bool, the run ends once every token is ordered with the margin."""
    limit: Tensor
    """ln 2 - margin, in nats: every token must get below it."""
    protect: Tensor
    """Weight of the predicted drift at the first step."""
    clip: Tensor
    """Largest gradient norm; infinite for no clipping."""
    weight_decay: Tensor
    learning_rate: Tensor
    """At the first step."""
    late_rate: Tensor
    """From half of the steps on; 0 where it goes on as it is."""
    steps: Tensor
    falling: Tensor
    """1 for a learning rate that falls linearly to 0 over `steps`, 0 for a constant one."""

    @classmethod
    def from_configs(cls, configs: Sequence[TrainConfig], device: str) -> PerAdapter:
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
            protect=each([c.protect for c in configs]),
            clip=each([c.clip or torch.inf for c in configs]),
            weight_decay=each([c.weight_decay for c in configs]),
            learning_rate=each([c.learning_rate for c in configs]),
            late_rate=each([c.late_rate for c in configs]),
            steps=each([c.steps for c in configs]),
            falling=each([c.schedule == "linear" for c in configs]),
        )

    def protections(self, step: int) -> Tensor:
        """Weight [K] of the drift at `step` (from 0): it halves HALVINGS times over `steps`.

        A run that ends once all is recalled thus ends near the strongest protection under which the facts still fit.
        """
        return self.protect * torch.exp2(-HALVINGS * step / self.steps)

    def learning_rates(self, step: int) -> Tensor:
        """[K] at `step` (from 0)."""
        rates = self.learning_rate * (1 - self.falling * step / self.steps)
        late = self.late_rate * (1 - self.falling * (2 * step / self.steps - 1))
        return torch.where((self.late_rate > 0) & (2 * step >= self.steps), late, rates)
