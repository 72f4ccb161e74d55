"""How far an adapted model's next-token probabilities are from the base's, and the gradient that brings them back.

Both come from the final hidden states of the same tokens, with the adapter and without: what lies between them and the
logits is frozen, so the states of the base are all that needs to be kept of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.losses.head_pass import Chunk, capped, multiply
from memlaw.model.head import FrozenHead
from memlaw.model.linear import product


@dataclass(frozen=True, eq=False)
class Divergence:
    """Results for n tokens."""

    kl: Tensor
    """[n], KL(base || adapted) = sum_v p_v (ln p_v - ln q_v) in nats."""
    gradient: Tensor
    """[n, d] of sum_t kl_t with respect to the adapted states, in their dtype."""


@torch.no_grad()
def divergence(head: FrozenHead, hidden: Tensor, base: Tensor, *, chunk: Chunk | None = None) -> Divergence:
    """KL(base || adapted) of n tokens and its gradient: with p, q = softmax of the logits, dKL/dlogits = q - p.

    `hidden` and `base` [n, d] are final states after the final norm, with the adapter and without. Costs three products
    of n * vocab * d multiplications; no tensor of [n, vocab] numbers is made.
    """
    weight = head.weight.detach()
    chunk = chunk or Chunk.for_device(hidden.device, len(weight))
    kl = torch.empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    gradient = torch.empty_like(hidden)
    scores, wanted = (hidden.new_empty(min(chunk.rows, len(hidden)), len(weight)) for _ in range(2))
    for start in range(0, len(hidden), chunk.rows):
        rows = slice(start, start + len(hidden[start : start + chunk.rows]))
        size = rows.stop - rows.start
        multiply(head, hidden[rows].detach(), scores[:size], chunk.columns)
        multiply(head, base[rows], wanted[:size], chunk.columns)
        adapted = capped(head, scores[:size])
        slope = None if head.softcap is None else 1 - (adapted / head.softcap).square()
        log_q = adapted.to(kl.dtype).log_softmax(-1)
        log_p = capped(head, wanted[:size]).to(kl.dtype).log_softmax(-1)
        p = log_p.exp()
        kl[rows] = (p * (log_p - log_q)).sum(-1)
        back = log_q.exp_().sub_(p).mul_(head.scale)
        if slope is not None:
            back.mul_(slope)
        gradient[rows] = product(back.to(hidden.dtype), weight.T)
    return Divergence(kl, gradient)
