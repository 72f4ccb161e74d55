"""How far an adapted model's next-token probabilities are from the base's, and the gradient that brings them back.

Both come from the final hidden states of the same tokens, with the adapter and without: what lies between them and the
logits is frozen, so the states of the base are all that needs to be kept of it.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    kl = torch.empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    gradient = torch.empty_like(hidden)
    adapted, original = _Logits(head, hidden, chunk), _Logits(head, base, chunk)
    for rows in adapted.parts():
        log_q, slope = adapted.log_softmax(rows)
        log_p, _ = original.log_softmax(rows)
        p = log_p.exp()
        kl[rows] = (p * (log_p - log_q)).sum(-1)
        gradient[rows] = adapted.back(log_q.exp_().sub_(p), slope)
    return Divergence(kl, gradient)


@torch.no_grad()
def drawn_gradient(head: FrozenHead, hidden: Tensor, stream: torch.Generator, *, chunk: Chunk | None = None) -> Tensor:
    """The gradient of -ln p(token) in each of n hidden states [n, d], for a token drawn from p = softmax of its logits.

    Its mean is zero, and its second moment is the Fisher information: the curvature of KL(p || q) at q = p.
    """
    gradient = torch.empty_like(hidden)
    logits = _Logits(head, hidden, chunk)
    for rows in logits.parts():
        log_q, slope = logits.log_softmax(rows)
        q = log_q.exp_()
        uniform = torch.rand(len(q), 1, generator=stream, dtype=torch.float64).to(q)
        cumulative = q.cumsum(-1)
        token = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_(max=q.shape[1] - 1)
        gradient[rows] = logits.back(q.scatter_add_(1, token, -torch.ones_like(uniform)), slope)
    return gradient


class _Logits:
    """The logits of hidden states, some rows at a time, and the way back from a gradient in them."""

    def __init__(self, head: FrozenHead, hidden: Tensor, chunk: Chunk | None) -> None:
        self.head, self.hidden, self.weight = head, hidden.detach(), head.weight.detach()
        self.chunk = chunk or Chunk.for_device(hidden.device, len(self.weight))
        self.scores = hidden.new_empty(min(self.chunk.rows, len(hidden)), len(self.weight))

    def parts(self) -> Iterator[slice]:
        for start in range(0, len(self.hidden), self.chunk.rows):
            yield slice(start, min(start + self.chunk.rows, len(self.hidden)))

    def log_softmax(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """ln p [m, vocab] in float32 at least, and the slope of the soft-cap, if the head has one."""
        raw = self.scores[: rows.stop - rows.start]
        multiply(self.head, self.hidden[rows], raw, self.chunk.columns)
        logits = capped(self.head, raw)
        slope = None if self.head.softcap is None else 1 - (logits / self.head.softcap).square_()
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1), slope

    def back(self, gradient: Tensor, slope: Tensor | None) -> Tensor:
        """From the logits [m, vocab] to the hidden states [m, d]; `gradient` is overwritten."""
        gradient = gradient.mul_(self.head.scale)
        if slope is not None:
            gradient = gradient.mul_(slope)
        return product(gradient.to(self.hidden.dtype), self.weight.T)
