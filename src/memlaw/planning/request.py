"""What a plan is asked for: a memory set in a few measured numbers, and what the user wants to know about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from memlaw.core.errors import ConfigError
from memlaw.planning.target import Target


@dataclass(frozen=True, kw_only=True)
class MeasuredSet:
    """A memory set as a plan sees it: numbers that take no training to measure. Raises ConfigError out of range."""

    records: int
    tokens: int
    """Target tokens of all records together."""
    loss_init: float
    """L_init: the base's mean loss on the targets before training, in nats per token."""
    loss_memoryless: float | None = None
    """L_init': the loss of the best predictor without memory, in nats per token. Defaults to L_init, and never exceeds
    it."""

    def __post_init__(self) -> None:
        if self.records < 1 or self.tokens < self.records:
            raise ConfigError(
                f"Cannot plan for {self.records} records with {self.tokens} target tokens: a plan needs at least one "
                "record, and each record at least one target token."
            )
        if not (math.isfinite(self.loss_init) and self.loss_init > 0):
            raise ConfigError(
                f"loss_init is {self.loss_init}, but the base's mean loss on the targets before training must be a "
                "finite number of nats above 0."
            )

    @property
    def loss_to_store(self) -> float:
        """min(L_init, L_init'), in nats per token: what an adapter has to remember."""
        return self.loss_init if self.loss_memoryless is None else min(self.loss_memoryless, self.loss_init)


@dataclass(frozen=True)
class PlanRequest:
    """What the user wants to know."""

    target: Target = field(default_factory=Target)
    """When the set counts as recalled."""
    rank: int | None = None
    """A rank whose capacity to state; None for that of the recommended rank."""
    timed: bool = False
    """Train for a few steps to estimate the training time; needs the loaded model."""
