"""The MemFT loss for people with logits, or with the loss of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.core.config import Rule
from memlaw.core.errors import ConfigError
from memlaw.losses.checks import check_reduction, require_same_places
from memlaw.losses.settings import MemFT, Settings, Weighing
from memlaw.losses.targets import SampleIds, Targets
from memlaw.losses.weights import EPS, divisor, weighted_terms, with_rule
from memlaw.losses.window import WindowState


def memft_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    num_items: int | Tensor | None = None,
    position_ids: Tensor | None = None,
    sample_ids: SampleIds | None = None,
    state: WindowState | None = None,
    shift: bool = True,
    **settings: Unpack[Settings],
) -> Tensor:
    """MemFT loss, in nats per token, of a batch: sum_t w_t L_t / (sum_t w_t + eps).

    L_t = -log softmax(logits[:, :-1])[labels[:, 1:]], in float32 at least, and w_t as `method="ot"`, `threshold=0.5`,
    `margin`, `rule="zero"`, `position` and `focus` say (`MemFT`, arXiv 2605.30260). For "sft" the same as
    `F.cross_entropy`. Without any token of weight it is 0, with gradient 0. Raises ConfigError.

    `logits` [batch, time, vocab]; `labels` [batch, time], -100 where there is no target. `shift=False`: labels[:, t]
    is already what logits[:, t] predict. In a packed row a new sample begins where `position_ids` [batch, time] do not
    go on by one or `sample_ids` [batch, time] change; its first token is not predicted from the one before. For "sw",
    `state` carries the windows from step to step, by `sample_ids` ([batch, time], or one a row: any hashable); it
    moves on with every call that can take a gradient.

    `reduction`: "mean"; "sum" = sum_t w_t L_t; "none" = w_t L_t at the place of each label, [batch, time]. `num_items`:
    what a mean divides by instead of the weights, for trainers that normalise by the tokens of the whole step.
    A mean or a fallback of a part of a step is not that of the step: to accumulate exactly, use `memft_sums`.
    """
    memft = MemFT(**settings)
    check_reduction(reduction, num_items, ("mean", "sum", "none"))
    require_same_places("logits", logits[..., 0], labels)
    targets = Targets.of(labels, position_ids, sample_ids, shift=shift)
    nll, hit = _scores(logits, targets, memft)
    weights = Weighing(memft, targets, sample_ids, state).together(nll, hit)
    weights = with_rule(weights, torch.ones_like(weights), memft.rule)
    if reduction == "none":
        empty = nll.new_zeros(labels.numel())
        return empty.index_copy(0, targets.place + shift, weighted_terms(nll, weights)).view(labels.shape)
    total = weighted_terms(nll, weights).sum()
    return total if reduction == "sum" else total / divisor(weights, num_items)


@dataclass(frozen=True, eq=False)
class MemFTSums:
    """What a part of an optimizer step adds to its loss. Scalars, `weighted` and `plain` with their gradient.

    The loss of the step is `weighted / (weight + EPS)` over all of it, however it is split into micro-batches and
    processes: call `weighted.backward()` for each part, then divide the gradients once, before clipping, by the step's
    `weight + EPS` (where processes average gradients, times their number).

    Under rule "fallback" the whole step decides: its loss is `plain / (tokens + EPS)` if its weight is 0. As long as
    the weight so far is 0, call `plain.backward()` instead. With the first part that has a weight, set the gradients to
    0 before its backward: the parts so far have no share in `weighted`. Processes have to sum the weight before each
    backward to agree.
    """

    weighted: Tensor
    """sum_t w_t L_t, nats."""
    weight: Tensor
    """sum_t w_t"""
    plain: Tensor
    """sum_t L_t, nats."""
    tokens: Tensor
    """How many target tokens."""

    @classmethod
    def of(cls, nll: Tensor, weights: Tensor) -> MemFTSums:
        """From the losses and weights of all tokens, each [n]."""
        tokens = weights.new_tensor(len(weights))
        return cls(weighted_terms(nll, weights).sum(), weights.sum(), nll.sum(), tokens)

    def __add__(self, other: MemFTSums) -> MemFTSums:
        return MemFTSums(
            self.weighted + other.weighted,
            self.weight + other.weight,
            self.plain + other.plain,
            self.tokens + other.tokens,
        )

    def mean(self, rule: Rule = "zero") -> Tensor:
        """The loss, if this is the whole step."""
        if rule == "fallback" and not self.weight:
            return self.plain / (self.tokens + EPS)
        return self.weighted / (self.weight + EPS)


def memft_sums(
    logits: Tensor,
    labels: Tensor,
    *,
    position_ids: Tensor | None = None,
    sample_ids: SampleIds | None = None,
    state: WindowState | None = None,
    shift: bool = True,
    **settings: Unpack[Settings],
) -> MemFTSums:
    """The sums `memft_loss` is made of, for training that takes a step in several parts; arguments as there."""
    memft = MemFT(**settings)
    require_same_places("logits", logits[..., 0], labels)
    targets = Targets.of(labels, position_ids, sample_ids, shift=shift)
    nll, hit = _scores(logits, targets, memft)
    return MemFTSums.of(nll, Weighing(memft, targets, sample_ids, state).together(nll, hit))


def memft_token_sums(
    nll: Tensor,
    hit: Tensor | None,
    labels: Tensor,
    *,
    position_ids: Tensor | None = None,
    sample_ids: SampleIds | None = None,
    state: WindowState | None = None,
    shift: bool = True,
    **settings: Unpack[Settings],
) -> MemFTSums:
    """`memft_sums` for people whose model gives no logits, but the loss of each token.

    `nll` [batch, time] in nats, where the logits would stand: nll[:, t] is the loss of labels[:, t + 1]. `hit`
    [batch, time] bool: that label is the argmax; only "sw" needs it. What stands beside a label of -100 is not read.
    """
    memft = MemFT(**settings)
    require_same_places("nll", nll, labels)
    targets = Targets.of(labels, position_ids, sample_ids, shift=shift)
    if hit is None:
        if memft.method == "sw":
            raise ConfigError("Method sw begins at the first token that is not the argmax: it needs to know the hits.")
        hit = torch.zeros_like(nll, dtype=torch.bool)
    chosen, hits = nll.flatten()[targets.place], hit.flatten()[targets.place]
    return MemFTSums.of(chosen, Weighing(memft, targets, sample_ids, state).together(chosen, hits))


def _scores(logits: Tensor, targets: Targets, memft: MemFT) -> tuple[Tensor, Tensor]:
    """nll [n] of the target tokens, and whether each is the argmax [n], where the method reads that."""
    rows = logits.flatten(0, 1)[targets.place]
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    nll = F.cross_entropy(exact, targets.token, reduction="none")
    hit = rows.argmax(-1) == targets.token if memft.method == "sw" else torch.zeros_like(nll, dtype=torch.bool)
    return nll, hit
