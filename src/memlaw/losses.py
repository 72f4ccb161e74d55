"""MemFT: which target tokens the training step is spent on (arXiv 2605.30260, section 4).

    L = sum_t w_t L_t / (sum_t w_t + eps),    w detached, over target tokens only.

Token weights are pure functions of the per-token loss; what they mean is in method names: *sft* all target tokens,
*ot* ("only threshold") those the model would not yet surely emit, p <= 1/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memlaw.errors import ConfigError
from memlaw.records import METHODS, Method, Rule

EPS = 1e-8
"""Keeps 0/0 at 0 once no token is left; nothing beside weights that sum to one or more."""

IGNORED = -100
"""Label of positions that are not targets, as everywhere in transformers."""


def token_weights(
    nll: Tensor, target: Tensor, *, method: Method = "ot", rule: Rule = "zero", critical: float = math.log(2.0)
) -> Tensor:
    """Weights w_t of each set of tokens along the last dimension.

    `nll` [..., tokens] in nats, `target` [..., tokens] bool, True where there is a target token; `critical` in nats:
    ot keeps a token until its nll is below it. A tie at p = 1/2 proves nothing, so it is kept too. Returns weights of
    the shape and dtype of `nll`, without gradient. Under rule "fallback" a set with no token left trains on all.
    """
    if method not in METHODS:
        raise ConfigError(f"Unknown method {method!r}; known: {', '.join(METHODS)}.")
    everything = target.to(nll.dtype)
    weights = everything * pointwise_weights(nll, every=method == "sft", critical=critical)
    if rule == "zero":
        return weights
    nothing_left = weights.sum(-1, keepdim=True) == 0
    return torch.where(nothing_left, everything, weights)


def pointwise_weights(nll: Tensor, *, every: Tensor | bool, critical: Tensor | float) -> Tensor:
    """1 where `every` or nll >= critical, else 0: sft and ot of tokens that may each have a threshold of their own.

    All of shapes that go together with `nll` [...]; without gradient, in the dtype of `nll`.
    """
    return ((nll.detach() >= critical) | torch.as_tensor(every, device=nll.device)).to(nll.dtype)


def weighted_mean(nll: Tensor, weights: Tensor) -> Tensor:
    """sum_t w_t L_t / (sum_t w_t + eps) along the last dimension: [..., tokens] -> [...]."""
    # where, not a product: an infinite loss at a token of weight 0 must not become 0 * inf = NaN.
    kept = torch.where(weights > 0, nll, torch.zeros_like(nll))
    return (weights * kept).sum(-1) / (weights.sum(-1) + EPS)


def memft_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    method: Method = "ot",
    threshold: float = 0.5,
    rule: Rule = "zero",
) -> Tensor:
    """MemFT loss, in nats per token, of a batch: the weighted mean of -log softmax(logits[:, :-1])[labels[:, 1:]].

    `logits` [batch, time, vocab], `labels` [batch, time] with -100 where there is no target; a scalar comes back. With
    method "ot" only tokens with p <= `threshold` count. Same as `F.cross_entropy` for "sft". Raises ConfigError.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold is a probability between 0 and 1, not {threshold}.")
    shifted = labels[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), shifted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    target = shifted.flatten() != IGNORED
    weights = token_weights(nll, target, method=method, rule=rule, critical=-math.log(threshold))
    return weighted_mean(nll, weights)
