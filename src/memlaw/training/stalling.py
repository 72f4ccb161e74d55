"""What a training does that comes no closer: it gives way to the facts sooner, and in the end it gives up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memlaw.core.config import TrainConfig

PATIENCE = 300
"""Steps, at least, without a new lowest share of tokens left before a training ends; and at least this part of all:"""

PATIENT_PART = 0.5

HALF_LIFE = 32
"""Steps in which the weight of protection halves while the facts come closer; otherwise it takes:"""

SHORT_HALF_LIFE = 4


@dataclass(frozen=True)
class Fewest:
    """The lowest share of target tokens that an adapter has left unordered, and the step that first reached it.

    An adapter that goes on from another starts with few tokens left and loses some of them at first. What it had left
    before it had most left is no measure of its progress, so the count starts anew there.
    """

    left: float = 1.0
    step: int = 0
    most: float = 1.0
    """The highest share so far."""

    def after(self, left: float, step: int) -> Fewest:
        if left > self.most:
            return Fewest(left, step, left)
        return Fewest(left, step, self.most) if left < self.left else self


def halving(fewest: Fewest, step: int) -> float:
    """How often the weight of protection halves at this step.

    A training that ends once all is recalled thus ends near the strongest protection under which the facts still fit.
    """
    return 1 / (HALF_LIFE if step - fewest.step < SHORT_HALF_LIFE else SHORT_HALF_LIFE)


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
