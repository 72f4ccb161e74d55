"""The weights that MemFT's settings give the target tokens of one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from memlaw.core.errors import ConfigError
from memlaw.losses.settings import MemFT, MemFTKeywords
from memlaw.losses.targets import Batching, BatchKeywords, Targets
from memlaw.losses.weights import pointwise_weights, record_factor
from memlaw.losses.window import WindowPass, WindowState


class LossKeywords(MemFTKeywords, BatchKeywords, total=False):
    """What every MemFT loss takes beside its tensors."""


class Weighing:
    """The weights of one batch: token by token in order, or all together."""

    def __init__(self, labels: Tensor, options: LossKeywords) -> None:
        """`labels` [batch, time]. Raises ConfigError for options that are unknown, out of range, or do not fit."""
        described = {name: value for name, value in options.items() if name in Batching.__dataclass_fields__}
        self.memft = MemFT(**{name: value for name, value in options.items() if name not in described})  # type: ignore[arg-type]
        batching = Batching(**described)  # type: ignore[arg-type]
        self.targets = Targets.from_labels(labels, batching)
        self.window = _window(self.memft, self.targets, batching) if self.memft.method == "sw" else None

    def in_order(self, nll: Tensor, hit: Tensor, rows: slice) -> Tensor:
        """Weights [m] of the tokens `rows`, without the factors that depend on whole samples (`MemFT.one_pass`)."""
        if self.window is not None:
            return self.window(nll, hit, rows)
        return pointwise_weights(nll, every=self.memft.method == "sft", critical=self.memft.critical)

    def together(self, nll: Tensor, hit: Tensor) -> Tensor:
        """Weights [n] of all tokens; `hit` is read for sw alone."""
        nll, memft, samples = nll.detach(), self.memft, self.targets.samples
        weights = self.in_order(nll, hit, slice(0, len(nll)))
        if not memft.one_pass:
            factors = {"critical": memft.critical, "position": memft.position, "focus": memft.focus}
            weights = weights * record_factor(nll, samples, **factors)
        self.finish()
        return weights

    def finish(self) -> None:
        """Move sw's windows on, once all tokens are weighed. An evaluation, without gradient, is not a step."""
        if self.window is not None and torch.is_grad_enabled():
            self.window.commit()


def _window(memft: MemFT, targets: Targets, batching: Batching) -> WindowPass:
    if batching.state is None:
        state, slots = WindowState(targets.samples.count), targets.samples.index
    elif batching.sample_ids is None:
        raise ConfigError(
            "A WindowState needs sample_ids: known by its place in the batch alone, a sample would be another one at "
            "every step."
        )
    else:
        state, slots = batching.state, targets.slots(batching.state, batching.sample_ids)
    return WindowPass(state, slots, targets.positions, critical=memft.critical)
