"""When a training counts as diverged although its loss is still a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from memlaw.core.config import TrainConfig
from memlaw.core.recall import LN2

if TYPE_CHECKING:  # advice after a divergence needs no torch
    from torch import Tensor

SMALLER = 4.0
"""By what factor to lower the learning rate after a divergence: from 2e-2, at which every layer of a real model at once
diverges, to 5e-3, at which none that was tried does."""

PATIENCE = 200
"""Steps in a row whose loss must be risen before a training ends early."""

NOT_FINITE = "the loss was no longer a finite number at step {step}; use a lower learning rate, such as {lower:.3g}"

ROSE = (
    "the loss rose from {before:.3g} to {after:.3g} nats per token in {step:,} steps, and training does not bring it "
    "back; use a lower learning rate, a quarter of {rate:.3g} ({lower:.3g}) or less"
)


def is_risen(loss: float, start: float) -> bool:
    """Whether a mean loss is clearly above where it started: loss > start + ln 2, in nats per token.

    Up to ln 2 a rise is no fault: `ot` leaves tokens alone that it finds recalled, and those may climb to ln 2 each.
    False for NaN, which is divergence of the other kind.
    """
    return loss > start + LN2


def risen_in_a_row(before: Sequence[int], losses: Tensor, starts: Sequence[float]) -> tuple[int, ...]:
    """For each adapter, how many steps in a row have ended with a risen loss: one more than `before`, or 0.

    `losses` [K] are the means over the target tokens of a step, `starts` those before the first step.
    """
    each = zip(before, losses.tolist(), starts, strict=True)
    return tuple(n + 1 if is_risen(loss, start) else 0 for n, loss, start in each)


def out_of_patience(in_a_row: Sequence[int], configs: Sequence[TrainConfig]) -> list[int]:
    """Places of the adapters whose loss has been risen for PATIENCE steps in a row, or a multiple of these.

    A step sees some of the records only, which may be harder than the others: have all of them evaluated before ending
    an adapter. A training to its budget is judged at its end alone: it may still come back when its learning rate has
    fallen, and the cells of a law must not depend on a guess.
    """
    return [
        k
        for k, (n, config) in enumerate(zip(in_a_row, configs, strict=True))
        if config.until == "recalled" and n and n % PATIENCE == 0
    ]


def why_diverged(losses: tuple[float, float], step: int, config: TrainConfig) -> str:
    """Why an adapter counts as diverged after `step` steps, as part of a sentence; empty if it does not.

    `losses` are the mean losses before training and now, in nats per target token.
    """
    (before, after), rate = losses, config.learning_rate
    if not math.isfinite(after):
        return NOT_FINITE.format(step=step, lower=rate / SMALLER)
    if is_risen(after, before):
        return ROSE.format(before=before, after=after, step=step, rate=rate, lower=rate / SMALLER)
    return ""
