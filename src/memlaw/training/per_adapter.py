"""Settings in which the adapters of a stack differ, as one tensor for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.core.config import TrainConfig
from memlaw.core.recall import LN2


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
    anneal: Tensor
    """Exponent with which the limit of training rises to `limit`; 0 where it is there from the start."""
    protect: Tensor
    """Weight of the predicted drift at the first step."""
    clip: Tensor
    """Largest gradient norm; infinite for no clipping."""
    weight_decay: Tensor
    learning_rate: Tensor
    """At the first step."""
    steps: Tensor
    falling: Tensor
    """1 for a learning rate that falls linearly to 0 over `steps`, 0 for others."""
    by_share: Tensor
    """bool, the learning rate follows the share of tokens that are still to be ordered."""
    average: Tensor
    """Exponent of the weights in the average over steps; 0 for none."""

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
            anneal=each([c.anneal for c in configs]),
            protect=each([c.protect for c in configs]),
            clip=each([c.clip or torch.inf for c in configs]),
            weight_decay=each([c.weight_decay for c in configs]),
            learning_rate=each([c.learning_rate for c in configs]),
            steps=each([c.steps for c in configs]),
            falling=each([c.schedule == "linear" for c in configs]),
            by_share=each([c.schedule == "share" for c in configs], torch.bool),
            average=each([c.average for c in configs]),
        )

    def training_limit(self, left: Tensor) -> Tensor:
        """Loss [K] above which a token is trained while a share `left` [K] of all is not below `limit`.

        Tokens that have just crossed the limit keep their weight while many others may still push them back.
        """
        return torch.where(self.anneal > 0, self.limit * (1 - left**self.anneal), self.limit)

    def learning_rates(self, step: int, left: Tensor) -> Tensor:
        """[K] at `step` (from 0), where a share `left` [K] of the target tokens that training has had to order is not
        ordered by the margin yet."""
        factor = torch.where(self.by_share, left.sqrt(), 1 - self.falling * step / self.steps)
        return self.learning_rate * factor

    def newest(self, step: int) -> Tensor:
        """Weight [K] of the weights after `step` (from 1) in their average: (p + 1) / (t + p), and 1 without one.

        That is polynomial-decay averaging (Shamir and Zhang, 2013): step t counts in proportion to about t^p, so the
        average looks back over a fixed share of all steps, however many there will be.
        """
        averaged = (self.average + 1) / (step + self.average)
        return torch.where(self.average > 0, averaged, 1.0)
