"""The settings of MemFT, and the weights they give the target tokens of a batch."""

from __future__ import annotations

import math
from typing import Annotated, TypedDict

import torch
from pydantic import Field
from torch import Tensor

from memlaw.core.config import Method, Number, Rule, Weighting
from memlaw.core.errors import ConfigError
from memlaw.core.settings import Choose, settings
from memlaw.losses.targets import SampleIds, Targets
from memlaw.losses.weights import pointwise_weights, record_factor
from memlaw.losses.window import WindowPass, WindowState


class Settings(TypedDict, total=False):
    """The fields of `MemFT`, as keywords."""

    method: Method
    threshold: float
    margin: float
    rule: Rule
    position: float
    focus: float


@settings
class MemFT(Weighting):
    """Which weight each target token gets. Raises ConfigError for a setting that is unknown or out of range."""

    method: Method = "ot"
    """sft, ot, sw, or curriculum: that is ot, on the samples that `curriculum_rows` or `exposed` let a step see."""
    threshold: Annotated[Number, Field(gt=0, lt=1), Choose("a probability between 0 and 1")] = 0.5
    """Probability up to which a token is disordered."""
    margin: Annotated[Number, Field(ge=0), Choose("nats from 0 up", unit="nats")] = 0.0
    """How far below -log(threshold) a token's loss must get before it counts as ordered."""

    def __post_init__(self) -> None:
        at_threshold = -math.log(self.threshold)
        if self.margin >= at_threshold:
            raise ConfigError(
                f"Setting margin is {self.margin!r}: choose nats from 0 to below {at_threshold:.3g}, the loss at the "
                "threshold: no loss can be further under it."
            )

    @property
    def critical(self) -> float:
        """Nats below which a token is ordered: -log(threshold) - margin."""
        return -math.log(self.threshold) - self.margin

    @property
    def one_pass(self) -> bool:
        """Whether a token's weight needs nothing of the tokens behind it."""
        return self.position == self.focus == 0


class Weighing:
    """The weights of one batch: token by token in order, or all together."""

    def __init__(self, memft: MemFT, targets: Targets, sample_ids: SampleIds | None, state: WindowState | None) -> None:
        self.memft, self.targets = memft, targets
        self.window = _window(memft, targets, sample_ids, state) if memft.method == "sw" else None

    def in_order(self, nll: Tensor, hit: Tensor, rows: slice) -> Tensor:
        """Weights [m] of the tokens `rows`, without the factors that need whole samples (`MemFT.one_pass`)."""
        if self.window is not None:
            return self.window(nll, hit, rows)
        return pointwise_weights(nll, every=self.memft.method == "sft", critical=self.memft.critical)

    def together(self, nll: Tensor, hit: Tensor) -> Tensor:
        """Weights [n] of all tokens; `hit` is read for sw alone."""
        nll, memft, samples = nll.detach(), self.memft, self.targets.samples
        weights = self.in_order(nll, hit, slice(0, len(nll)))
        if not memft.one_pass:
            settings = {"critical": memft.critical, "position": memft.position, "focus": memft.focus}
            weights = weights * record_factor(nll, samples, **settings)
        self.finish()
        return weights

    def finish(self) -> None:
        """All tokens are weighed. An evaluation, which takes no gradient, is no step of a sample."""
        if self.window is not None and torch.is_grad_enabled():
            self.window.commit()


def _window(memft: MemFT, targets: Targets, sample_ids: SampleIds | None, state: WindowState | None) -> WindowPass:
    if state is None:
        state, slots = WindowState(targets.samples.count), targets.samples.index
    elif sample_ids is None:
        raise ConfigError(
            "A WindowState needs sample_ids: by its place in the batch, a sample would be another one at every step."
        )
    else:
        slots = targets.slots(state, sample_ids)
    return WindowPass(state, slots, targets.positions, critical=memft.critical)
