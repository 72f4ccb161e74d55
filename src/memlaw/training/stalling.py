"""When a training that follows the work that is left has none it can still do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memlaw.core.config import TrainConfig

PATIENCE = 300
"""Steps, at least, without a new lowest share of tokens left before a training ends; and at least this part of all:"""

PATIENT_PART = 0.5


@dataclass(frozen=True)
class Fewest:
    """The lowest share of target tokens that an adapter has left unordered, and the step that first reached it."""

    left: float = 1.0
    step: int = 0

    def after(self, left: float, step: int) -> Fewest:
        return Fewest(left, step) if left < self.left else self


def stalled(fewest: Sequence[Fewest], step: int, configs: Sequence[TrainConfig]) -> list[int]:
    """Places of the adapters that have not come closer to the end for long.

    Only where the learning rate follows the share of tokens left: there the steps to come are like those taken, whereas
    a rate that falls with the budget does its best work at the end.
    """
    return [
        k
        for k, (best, config) in enumerate(zip(fewest, configs, strict=True))
        if config.until == "recalled" and config.schedule == "share"
        if step - best.step >= max(PATIENCE, PATIENT_PART * step)
    ]
