"""The MemFT loss from final hidden states: logits are never kept, neither forward nor backward."""

from __future__ import annotations

from typing import Any, Literal, Unpack, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memlaw.core.errors import ConfigError
from memlaw.losses.checks import check_reduction, require_in_vocabulary, require_same_places
from memlaw.losses.head_pass import HeadPass, head_pass, token_scores
from memlaw.losses.weighing import LossKeywords, Weighing
from memlaw.losses.weights import divisor, weighted_terms, with_rule
from memlaw.model.head import FrozenHead


class HeadLossKeywords(LossKeywords, total=False):
    """What `memft_head_loss` takes beside its tensors."""

    bias: Tensor | None
    softcap: float | None
    scale: float


def memft_head_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    num_items: int | Tensor | None = None,
    **options: Unpack[HeadLossKeywords],
) -> Tensor:
    """`memft_loss` of the logits softcap * tanh(z / softcap), z = scale * (hidden @ head_weight.T + bias).

    The head takes no gradient: freeze it. Forward costs one product of the target tokens with the head, plus one of
    those with a weight, which gives the gradient that backward passes on (`losses.head_pass`). `position` and `focus`,
    which need whole samples, and a fallback cost one product more. Raises ConfigError.

    Args:
        hidden: [batch, time, d], final states, after the final norm.
        head_weight: [vocab, d].
        labels: [batch, time], -100 at places that are not targets.
        reduction: "mean", or "sum" = sum_t w_t L_t.
        num_items: as in `memft_loss`.
        **options: bias=None [vocab], softcap=None and scale=1.0 of the head; all others as in `memft_loss`.
    """
    check_reduction(reduction, num_items, ("mean", "sum"))
    bias, softcap, scale = options.pop("bias", None), options.pop("softcap", None), options.pop("scale", 1.0)
    head = FrozenHead(head_weight, bias=bias, softcap=softcap, scale=scale)
    _check_head(hidden, head)
    require_same_places("hidden states", hidden[..., 0], labels)
    weighing = Weighing(labels, cast("LossKeywords", options))
    require_in_vocabulary(weighing.targets.token, len(head_weight))
    states = hidden.flatten(0, 1)[weighing.targets.place]
    scored = _through_head(head, states, weighing)
    value = weighted_terms(scored.nll, scored.weights).sum()
    total: Tensor = _PrecomputedGradient.apply(states, value, scored.gradient)  # type: ignore[no-untyped-call]
    return total if reduction == "sum" else total / divisor(scored.weights, num_items)


def _through_head(head: FrozenHead, states: Tensor, weighing: Weighing) -> HeadPass:
    """The pass through the head under the weights of the method."""
    memft, tokens = weighing.memft, weighing.targets.token
    if not states.requires_grad or not memft.one_pass:
        nll, hit = token_scores(head, states, tokens)
        weights = with_rule(weighing.together(nll, hit), torch.ones_like(nll), memft.rule)
        if not states.requires_grad:
            return HeadPass(nll, hit, weights, gradient=torch.zeros_like(states))
        return head_pass(head, states, tokens, lambda _nll, _hit, rows: weights[rows])
    scored = head_pass(head, states, tokens, weighing.in_order)
    weighing.finish()
    if memft.rule == "fallback" and not scored.weights.any():
        return head_pass(head, states, tokens, lambda nll, _hit, _rows: torch.ones_like(nll))
    return scored


class _PrecomputedGradient(torch.autograd.Function):
    """A value whose gradient with respect to the states is known already."""

    @staticmethod
    def forward(ctx: Any, _states: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


def _check_head(hidden: Tensor, head: FrozenHead) -> None:
    if head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad):
        raise ConfigError(
            "The head requires a gradient, and memft_head_loss gives it none: freeze it with requires_grad_(False), or "
            "use memft_loss on logits."
        )
    if hidden.dtype != head.weight.dtype or hidden.shape[-1] != head.weight.shape[-1]:
        raise ConfigError(
            f"Hidden states of width {hidden.shape[-1]} in {hidden.dtype} do not fit a head of width "
            f"{head.weight.shape[-1]} in {head.weight.dtype}: bring both to the same width and precision."
        )
