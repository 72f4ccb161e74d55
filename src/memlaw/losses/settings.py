"""The settings of MemFT, and the weights they give the target tokens of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict, get_args

import torch
from torch import Tensor

from memlaw.core.config import METHODS, Method, Rule
from memlaw.core.errors import ConfigError
from memlaw.losses.checks import require_known
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


@dataclass(frozen=True, kw_only=True)
class MemFT:
    """Which weight each target token gets. Raises ConfigError for a setting that is unknown or out of range."""

    method: Method = "ot"
    """sft, ot, sw, or curriculum: that is ot, on the samples that `curriculum_rows` or `exposed` let a step see."""
    threshold: float = 0.5
    """Probability up to which a token is disordered."""
    margin: float = 0.0
    """Nats below -log(threshold) that a token's loss must reach before it counts as ordered."""
    rule: Rule = "zero"
    """What ot does when no token is left: zero gradient, or fall back to the sft loss."""
    position: float = 0.0
    """lambda: exp(-lambda * rank / (n - 1)) for the n disordered tokens of a sample (published: 2); 0 = off."""
    focus: float = 0.0
    """n^-focus for all tokens of a sample with n disordered ones; 0 = off."""

    def __post_init__(self) -> None:
        require_known("method", self.method, METHODS)
        require_known("rule", self.rule, get_args(Rule))
        if not 0 < _number(self.threshold) < 1:
            raise ConfigError(f"threshold is {self.threshold!r}: choose a probability between 0 and 1.")
        at_threshold = -math.log(self.threshold)
        if not 0 <= _number(self.margin) < at_threshold:
            raise ConfigError(
                f"margin is {self.margin!r}: choose nats from 0 to below {at_threshold:.3g}, the loss at the "
                "threshold: no loss can be further under it."
            )
        for name in ("position", "focus"):
            value = getattr(self, name)
            if not 0 <= _number(value) < math.inf:
                raise ConfigError(f"{name} is {value!r}: choose a number above 0, or 0 to turn it off.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> MemFT:
        """The settings by their names; one that is not known would change nothing, so it is refused."""
        for name in settings:
            require_known("setting", name, [field.name for field in fields(cls)])
        return cls(**settings)

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


def _number(value: object) -> float:
    """The value, or NaN, which is in no range, if it is no number."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
