"""The MemFT loss for people with final hidden states: no logits are kept, neither forward nor backward."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from memlaw.core.errors import ConfigError
from memlaw.losses.checks import check_reduction, require_same_places
from memlaw.losses.head_pass import HeadPass, head_pass, token_scores
from memlaw.losses.settings import MemFT, Settings, Weighing
from memlaw.losses.targets import SampleIds, Targets
from memlaw.losses.weights import divisor, weighted_terms, with_rule
from memlaw.losses.window import WindowState
from memlaw.model.head import FrozenHead


def memft_head_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    reduction: Literal["mean", "sum"] = "mean",
    num_items: int | Tensor | None = None,
    position_ids: Tensor | None = None,
    sample_ids: SampleIds | None = None,
    state: WindowState | None = None,
    shift: bool = True,
    **settings: Unpack[Settings],
) -> Tensor:
    """`memft_loss` of the logits softcap * tanh(z / softcap), z = scale * (hidden @ head_weight.T + bias).

    `hidden` [batch, time, d] are final states, past the final norm; `head_weight` [vocab, d], `bias` [vocab]; all else
    as in `memft_loss`. The head takes no gradient: freeze it. Forward costs one product of the target tokens with the
    head, and one more of those with a weight, which gives the gradient that backward hands on (`head.head_pass`);
    `position` and `focus`, which look at whole samples first, and a fallback cost one product more. Raises ConfigError.
    """
    memft = MemFT(**settings)
    check_reduction(reduction, num_items, ("mean", "sum"))
    _check_head(hidden, head_weight, bias)
    require_same_places("hidden states", hidden[..., 0], labels)
    targets = Targets.of(labels, position_ids, sample_ids, shift=shift)
    states = hidden.flatten(0, 1)[targets.place]
    head = FrozenHead(head_weight, bias=bias, softcap=softcap, scale=scale)
    found = _passed(head, states, targets, memft, Weighing(memft, targets, sample_ids, state))
    value = weighted_terms(found.nll, found.weights).sum()
    total: Tensor = _PrecomputedGradient.apply(states, value, found.gradient)  # type: ignore[no-untyped-call]
    return total if reduction == "sum" else total / divisor(found.weights, num_items)


def _passed(head: FrozenHead, states: Tensor, targets: Targets, memft: MemFT, weighing: Weighing) -> HeadPass:
    """The pass through the head under the weights of the method."""
    if not states.requires_grad or not memft.one_pass:
        nll, hit = token_scores(head, states, targets.token)
        weights = with_rule(weighing.together(nll, hit), torch.ones_like(nll), memft.rule)
        if not states.requires_grad:
            return HeadPass(nll, hit, weights, gradient=torch.zeros_like(states))
        return head_pass(head, states, targets.token, lambda _nll, _hit, rows: weights[rows])
    found = head_pass(head, states, targets.token, weighing.in_order)
    weighing.finish()
    if memft.rule == "fallback" and not found.weights.any():
        return head_pass(head, states, targets.token, lambda nll, _hit, _rows: torch.ones_like(nll))
    return found


class _PrecomputedGradient(torch.autograd.Function):
    """A value whose gradient in the states is known already."""

    @staticmethod
    def forward(ctx: Any, _states: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


def _check_head(hidden: Tensor, head_weight: Tensor, bias: Tensor | None) -> None:
    if head_weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ConfigError(
            "The head asks for a gradient, and memft_head_loss gives it none: freeze it with requires_grad_(False), or "
            "use memft_loss on logits."
        )
    if hidden.dtype != head_weight.dtype or hidden.shape[-1] != head_weight.shape[-1]:
        raise ConfigError(
            f"Hidden states of width {hidden.shape[-1]} in {hidden.dtype} do not go with a head of width "
            f"{head_weight.shape[-1]} in {head_weight.dtype}: bring both to one precision."
        )
