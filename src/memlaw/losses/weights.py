"""Token weights as pure functions of the losses of target tokens. All [n], all without gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.core.config import METHODS, Method, Rule
from memlaw.core.errors import ConfigError
from memlaw.core.recall import LN2
from memlaw.losses.checks import require_known

EPS = 1e-8
"""Makes 0/0 a 0 once no token is left; negligible beside weights that sum to one or more."""


def disordered(nll: Tensor, critical: Tensor | float) -> Tensor:
    """nll >= critical, or NaN: bool. A tie at p = 1/2 is not recall, and neither is a loss that is not a number."""
    return ~(nll.detach() < critical)


def pointwise_weights(nll: Tensor, *, every: Tensor | bool, critical: Tensor | float) -> Tensor:
    """1 where `every` or nll >= critical, else 0: sft and ot, with one threshold or one for each token.

    All shapes broadcast with `nll` [...]; without gradient, in the dtype of `nll`.
    """
    return (disordered(nll, critical) | torch.as_tensor(every, device=nll.device)).to(nll.dtype)


def token_weights(
    nll: Tensor, target: Tensor, *, method: Method = "ot", rule: Rule = "zero", critical: float = LN2
) -> Tensor:
    """sft and ot weights of sets of tokens along the last dimension; a fallback is decided for each set.

    `nll` [..., tokens] in nats, `target` [..., tokens] bool, False in padding; ot keeps a token until its nll is below
    `critical`. Returns the shape and dtype of `nll`. Raises ConfigError for sw, which needs more than
    the losses (`WindowPass`).
    """
    require_known("method", method, METHODS)
    if method == "sw":
        raise ConfigError("Method sw weighs a token by the errors before it: its weights come from a `WindowPass`.")
    return with_rule(target * pointwise_weights(nll, every=method == "sft", critical=critical), target, rule)


@dataclass(frozen=True, eq=False)
class Samples:
    """The sample of each of n target tokens. Tokens are ordered by sample, and by position within a sample."""

    index: Tensor
    """[n], increasing, from 0 to below `count`."""
    count: int

    def totals(self, chosen: Tensor) -> Tensor:
        """For each token, the number of `chosen` [n] bool tokens in its sample: [n]."""
        return self._by_sample(chosen)[self.index]

    def ranks(self, chosen: Tensor) -> Tensor:
        """For each token, the number of chosen tokens before it in its sample: [n]."""
        by_sample = self._by_sample(chosen)
        earlier_samples = by_sample.cumsum(0) - by_sample
        return chosen.cumsum(0) - chosen.long() - earlier_samples[self.index]

    def _by_sample(self, chosen: Tensor) -> Tensor:
        return torch.zeros(self.count, dtype=torch.long, device=chosen.device).index_add(0, self.index, chosen.long())


def position_factor(nll: Tensor, samples: Samples, *, critical: Tensor | float, decay: Tensor | float) -> Tensor:
    """exp(-decay * rank / (n - 1)) for the n disordered tokens of a sample, by position from rank 0; 1 for the others.

    The published position weight has decay 2; 0 turns it off. `critical` and `decay` may be [n].
    """
    stubborn = disordered(nll, critical)
    last = (samples.totals(stubborn) - 1).clamp(min=1)
    share = samples.ranks(stubborn).to(nll.dtype) / last
    return torch.where(stubborn, torch.exp(-decay * share), 1.0).to(nll.dtype)


def focus_factor(nll: Tensor, samples: Samples, *, critical: Tensor | float, exponent: Tensor | float) -> Tensor:
    """n^-exponent for all tokens of a sample with n disordered ones; 1 where none is left.

    memlaw's own. Under ot a sample's total weight is n^(1 - exponent): with exponent 1 all unfinished samples count the
    same, above 1 those with the fewest tokens left count most; 0 turns it off. `critical` and `exponent` may be [n].
    """
    left = samples.totals(disordered(nll, critical)).clamp(min=1)
    return (left.to(nll.dtype) ** -exponent).to(nll.dtype)


def record_factor(
    nll: Tensor, samples: Samples, *, critical: Tensor | float, position: Tensor | float, focus: Tensor | float
) -> Tensor:
    """The product of `position_factor` and `focus_factor`; 0 turns either off."""
    by_place = position_factor(nll, samples, critical=critical, decay=position)
    return by_place * focus_factor(nll, samples, critical=critical, exponent=focus)


def weighted_terms(nll: Tensor, weights: Tensor) -> Tensor:
    """w_t L_t"""
    # where, not a product: an infinite loss at a token of weight 0 must not become 0 * inf = NaN.
    return weights * torch.where(weights != 0, nll, torch.zeros_like(nll))


def weighted_mean(nll: Tensor, weights: Tensor) -> Tensor:
    """sum_t w_t L_t / (sum_t w_t + eps) along the last dimension: [..., tokens] -> [...]."""
    return weighted_terms(nll, weights).sum(-1) / (weights.sum(-1) + EPS)


def with_rule(weights: Tensor, target: Tensor, rule: Rule) -> Tensor:
    """`weights` [..., tokens]; under rule "fallback", 1 for the targets of a set (last dimension) without weight."""
    if rule == "zero":
        return weights
    return torch.where(weights.any(-1, keepdim=True), weights, target.to(weights.dtype))


def divisor(weights: Tensor, num_items: int | Tensor | None) -> Tensor:
    """The divisor that makes a mean of sum_t w_t L_t; never 0."""
    return weights.sum() + EPS if num_items is None else torch.as_tensor(num_items, device=weights.device).clamp(min=1)
