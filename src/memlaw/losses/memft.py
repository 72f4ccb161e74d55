"""The MemFT loss from logits, or from the loss of every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.core.config import Rule
from memlaw.core.errors import ConfigError
from memlaw.losses.checks import check_reduction, require_in_vocabulary, require_same_places
from memlaw.losses.weighing import LossKeywords, Weighing
from memlaw.losses.weights import EPS, divisor, weighted_terms, with_rule


def memft_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    num_items: int | Tensor | None = None,
    **options: Unpack[LossKeywords],
) -> Tensor:
    """MemFT loss of a batch, in nats per token: sum_t w_t L_t / (sum_t w_t + eps) (arXiv 2605.30260).

    L_t = -log softmax(logits[:, :-1])[labels[:, 1:]], in float32 at least. With method "sft" this is
    `F.cross_entropy`. If no token has weight, the loss and its gradient are 0. Raises ConfigError.

    Args:
        logits: [batch, time, vocab].
        labels: [batch, time], -100 at places that are not targets.
        reduction: "mean"; "sum" = sum_t w_t L_t; "none" = w_t L_t at the place of each label, [batch, time].
        num_items: the divisor of a mean instead of the weights, for trainers that divide by the tokens of a step.
        **options: the settings of `MemFT` (method="ot", threshold=0.5, margin=0, rule="zero", position=0, focus=0),
            which give the weights w_t, and those of the batch:
            position_ids [batch, time]: in a packed row, a sample begins where they do not increase by one, and its
            first token is not predicted from the sample before it;
            sample_ids ([batch, time], or any hashable for each row): the same, where they change, and the names of the
            samples for `state`;
            state: a `WindowState` that carries the windows of "sw" from step to step. It moves on with every call that
            can take a gradient;
            shift=False: labels[:, t] is what logits[:, t] predict already.

    The mean or the fallback of a part of a step is not that of the step: for exact gradient accumulation, use
    `memft_sums`.
    """
    check_reduction(reduction, num_items, ("mean", "sum", "none"))
    require_same_places("logits", logits[..., 0], labels)
    weighing = Weighing(labels, options)
    nll, hit = _scores(logits, weighing)
    weights = weighing.together(nll, hit)
    weights = with_rule(weights, torch.ones_like(weights), weighing.memft.rule)
    if reduction == "none":
        empty = nll.new_zeros(labels.numel())
        label_places = weighing.targets.place + options.get("shift", True)
        return empty.index_copy(0, label_places, weighted_terms(nll, weights)).view(labels.shape)
    total = weighted_terms(nll, weights).sum()
    return total if reduction == "sum" else total / divisor(weights, num_items)


@dataclass(frozen=True, eq=False)
class MemFTSums:
    """What a part of an optimizer step adds to its loss. Scalars, `weighted` and `plain` with their gradient.

    The loss of the step is `weighted / (weight + EPS)`, summed over its micro-batches and processes: call
    `weighted.backward()` for each part, then divide the gradients once, before clipping, by the step's `weight + EPS`
    (times the number of processes, where they average gradients).

    Under rule "fallback" the loss is `plain / (tokens + EPS)` if the weight of the whole step is 0. While the weight so
    far is 0, call `plain.backward()` instead. Before the backward of the first part that has weight, set the gradients
    to 0: the earlier parts have no share in `weighted`. Processes must sum the weight before each backward to agree.
    """

    weighted: Tensor
    """sum_t w_t L_t, nats."""
    weight: Tensor
    """sum_t w_t"""
    plain: Tensor
    """sum_t L_t, nats."""
    tokens: Tensor
    """Number of target tokens."""

    @classmethod
    def from_tokens(cls, nll: Tensor, weights: Tensor) -> MemFTSums:
        """From the losses and weights of all target tokens, each [n]."""
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
        """The loss, if these are the sums of the whole step."""
        if rule == "fallback" and not self.weight:
            return self.plain / (self.tokens + EPS)
        return self.weighted / (self.weight + EPS)


def memft_sums(logits: Tensor, labels: Tensor, **options: Unpack[LossKeywords]) -> MemFTSums:
    """The sums that `memft_loss` divides, for steps taken in several parts; arguments as there."""
    require_same_places("logits", logits[..., 0], labels)
    weighing = Weighing(labels, options)
    nll, hit = _scores(logits, weighing)
    return MemFTSums.from_tokens(nll, weighing.together(nll, hit))


def memft_token_sums(nll: Tensor, hit: Tensor | None, labels: Tensor, **options: Unpack[LossKeywords]) -> MemFTSums:
    """`memft_sums` for models that give the loss of each token and no logits.

    `nll` [batch, time] in nats: nll[:, t] is the loss of labels[:, t + 1]. `hit` [batch, time] bool: that label is the
    argmax; only "sw" needs it. Values beside a label of -100 are not read.
    """
    require_same_places("nll", nll, labels)
    weighing = Weighing(labels, options)
    if hit is None:
        if weighing.memft.method == "sw":
            raise ConfigError("Method sw starts at the first token that is not the argmax: it needs to know the hits.")
        hit = torch.zeros_like(nll, dtype=torch.bool)
    place = weighing.targets.place
    target_nll, target_hit = nll.flatten()[place], hit.flatten()[place]
    return MemFTSums.from_tokens(target_nll, weighing.together(target_nll, target_hit))


def _scores(logits: Tensor, weighing: Weighing) -> tuple[Tensor, Tensor]:
    """nll [n] of the target tokens, and whether each is the argmax [n], which only sw reads."""
    targets = weighing.targets
    require_in_vocabulary(targets.token, logits.shape[-1])
    rows = logits.flatten(0, 1)[targets.place]
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    nll = F.cross_entropy(exact, targets.token, reduction="none")
    if weighing.memft.method == "sw":
        return nll, rows.argmax(-1) == targets.token
    return nll, torch.zeros_like(nll, dtype=torch.bool)
