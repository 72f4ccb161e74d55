"""The frozen LM head: from final hidden states to the loss and the top-1 hit of each target token, and back.

The head takes no gradient, and under a threshold method most target tokens have no weight. So one pass in row order
suffices: compute the logits of a few hundred rows, their losses and weights, and, while the logits are still there, the
gradient of the rows with a weight. In products of n * vocab * d multiplications that costs 1 + the share of active
rows, where autograd costs 2. No tensor of [n, vocab] numbers is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from memlaw.losses.kernels import usable
from memlaw.model.head import FrozenHead
from memlaw.model.linear import product, product_into

Weigh = Callable[[Tensor, Tensor, slice], Tensor]
"""weigh(nll [m], hit [m], rows) -> weights [m] of the rows `rows`. It gets all rows, in order, each once."""


@dataclass(frozen=True, eq=False)
class HeadPass:
    """Results of one pass over n tokens; nll and weights are float32 for half-precision states, else of their dtype."""

    nll: Tensor
    """[n] in nats."""
    hit: Tensor
    """[n] bool: the target is the argmax of the logits."""
    weights: Tensor
    """[n], from the caller."""
    gradient: Tensor
    """[n, d] of sum_t weights_t * nll_t with respect to the hidden states, in their dtype; not divided by a count."""


@dataclass(frozen=True)
class Chunk:
    """How much is computed at a time. It decides time and memory; the result differs by rounding only."""

    rows: int
    """Rows of logits in memory. With fewer, products spend their time reading the weights of the head."""
    columns: int
    """Vocabulary of one product. One core is ten per cent faster when its share of the weights fits the cache."""
    numbers: int
    """Logits whose softmax is taken at once, at least one row: few enough for all its passes to run in the cache."""

    @classmethod
    def for_device(cls, device: torch.device, vocabulary: int) -> Chunk:
        """Sizes measured on one CPU core; an accelerator gets enough to keep it busy, about a gigabyte."""
        if device.type == "cpu":
            numbers = 1 << 19
            rows = min(max(256, numbers // vocabulary), 30_000_000 // vocabulary)
            return cls(rows=max(1, rows), columns=1024, numbers=numbers)
        return cls(rows=2048, columns=vocabulary, numbers=1 << 26)


@torch.no_grad()
def token_scores(
    head: FrozenHead, hidden: Tensor, targets: Tensor, *, chunk: Chunk | None = None
) -> tuple[Tensor, Tensor]:
    """Per-token nll [n] in nats and top-1 hit [n] bool, for evaluation: nothing is differentiable.

    `hidden` [n, d] are final states, after the final norm, at the positions that predict `targets` [n]. Same as nll =
    `F.cross_entropy(logits, targets, reduction="none")`, hit = `logits.argmax(1) == targets`, where the logits are
    softcap * tanh(z / softcap), z = scale * (hidden @ weight.T + bias).
    """
    nll, hit = _results(hidden)
    softmax = _softmax_for(hidden)
    for rows, scores in _Pool(head, hidden, chunk).blocks():
        scored = softmax(head, scores, targets[rows])
        nll[rows], hit[rows] = scored.nll, scored.hit
    return nll, hit


@torch.no_grad()
def head_pass(
    head: FrozenHead, hidden: Tensor, targets: Tensor, weigh: Weigh, *, chunk: Chunk | None = None
) -> HeadPass:
    """Losses, hits and weights of n tokens, and the gradient of `sum_t weights_t * nll_t` in the hidden states.

    Same as `token_scores`, and as autograd with constant weights; `hidden` [n, d] and `targets` [n] as there. Only rows
    with a weight other than 0 cost a backward product. A row whose nll is NaN has a NaN gradient whatever its weight,
    as under autograd: a diverged run must not look like one with nothing left to learn.
    """
    nll, hit = _results(hidden)
    weights = torch.empty_like(nll)
    gradient = torch.zeros_like(hidden)
    pool, softmax = _Pool(head, hidden, chunk), _softmax_for(hidden)
    for rows, scores in pool.blocks(gradient):
        scored = softmax(head, scores, targets[rows])
        weighed = weigh(scored.nll, scored.hit, rows)
        nll[rows], hit[rows], weights[rows] = scored.nll, scored.hit, weighed
        active = ((weighed != 0) | scored.nll.isnan()).nonzero()[:, 0]
        scored.write_gradient(active, weighed, out=pool.claim(active + rows.start))
    return HeadPass(nll, hit, weights, gradient)


class _Pool:
    """A few hundred rows of [vocab] numbers: gradients of active rows at the front, fresh logits after them.

    A chunk may have only one or two active rows, so they wait at the front until there are enough for a matrix product
    that is worth reading the head for. Rows only move forward, over logits that are no longer needed.
    """

    def __init__(self, head: FrozenHead, hidden: Tensor, chunk: Chunk | None) -> None:
        self.head, self.hidden = head, hidden.detach()
        self.weight = head.weight.detach()
        self.chunk = chunk or Chunk.for_device(hidden.device, len(self.weight))
        self.rows = self.hidden.new_empty(min(self.chunk.rows, len(hidden)), len(self.weight))
        self.owners = torch.empty(len(self.rows), dtype=torch.long, device=hidden.device)
        self.waiting = 0

    def blocks(self, gradient: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """(rows, logits [m, vocab]) of all hidden states in order; what is claimed goes into `gradient` [n, d]."""
        at = 0
        while at < len(self.hidden):
            if self.waiting > len(self.rows) // 4:
                self._release(gradient)
            fresh = self.rows[self.waiting :][: len(self.hidden) - at]
            self._multiply(self.hidden[at : at + len(fresh)], fresh)
            for block in torch.split(fresh, max(1, self.chunk.numbers // len(self.weight))):
                yield slice(at, at + len(block)), self._capped(block)
                at += len(block)
        self._release(gradient)

    def claim(self, owners: Tensor) -> Tensor:
        """Space [k, vocab] for the gradient with respect to the raw logits of the hidden states `owners` [k].

        It may overlap the logits given out last, with each row at or before the row of its owner.
        """
        places = slice(self.waiting, self.waiting + len(owners))
        self.owners[places], self.waiting = owners, places.stop
        return self.rows[places]

    def _release(self, gradient: Tensor | None) -> None:
        if gradient is not None:
            gradient.index_copy_(0, self.owners[: self.waiting], product(self.rows[: self.waiting], self.weight.T))
        self.waiting = 0

    def _multiply(self, hidden: Tensor, out: Tensor) -> None:
        multiply(self.head, hidden, out, self.chunk.columns)

    def _capped(self, raw: Tensor) -> Tensor:
        return capped(self.head, raw)


def multiply(head: FrozenHead, hidden: Tensor, out: Tensor, columns: int) -> None:
    """out [n, vocab] = scale * (hidden [n, d] @ weight.T + bias), `columns` of the vocabulary at a time."""
    weight, scale = head.weight.detach(), head.scale
    scaled = hidden if scale == 1 else hidden * scale
    offset = None if head.bias is None else head.bias.detach().to(hidden.dtype) * scale
    for start in range(0, len(weight), columns):
        part = slice(start, start + columns)
        product_into(out[:, part], scaled, weight[part], None if offset is None else offset[part])


def capped(head: FrozenHead, raw: Tensor) -> Tensor:
    """The logits of a head from what `multiply` gives: softcap * tanh(raw / softcap), in float32 at least."""
    cap = head.softcap
    return raw if cap is None else _full(raw).div_(cap).tanh_().mul_(cap)


def _full(x: Tensor) -> Tensor:
    """x itself, or in float32 what has half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _results(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Empty nll and hit of n hidden states."""
    return _full(hidden.new_empty(len(hidden))), hidden.new_empty(len(hidden), dtype=torch.bool)


class _Softmax(Protocol):
    """Losses of a chunk of logits [m, vocab], which may be overwritten, and the gradient of some of its rows."""

    nll: Tensor
    hit: Tensor

    def __init__(self, head: FrozenHead, scores: Tensor, targets: Tensor) -> None: ...

    def write_gradient(self, active: Tensor, weights: Tensor, out: Tensor) -> None:
        """out [a, vocab] = gradient of `sum_t weights_t * nll_t` in the raw logits of the rows `active` [a].

        `weights` [m]. Call it once; `out` may overlap the logits, with each row at or before that of `active`.
        """
        ...


class _TorchSoftmax:
    """In float32 at least, whatever the precision of the logits; logits in float32 or more are overwritten.

    A target is a hit if it is scores.argmax(1), where the first of equal scores wins. It is compared with the largest
    other logit, since on the CPU that is found ten times faster than the argmax.
    """

    def __init__(self, head: FrozenHead, scores: Tensor, targets: Tensor) -> None:
        self.head, self.target = head, targets[:, None]
        self.softcap_slope = None if head.softcap is None else 1 - (scores / head.softcap).square_()
        own = scores.gather(1, self.target)
        rival = scores.scatter_(1, self.target, -torch.inf).amax(1, keepdim=True)
        scores.scatter_(1, self.target, own)
        self.hit = (own > rival)[:, 0]
        tied = (own == rival)[:, 0].nonzero()[:, 0]
        self.hit[tied] = scores[tied].argmax(1) == targets[tied]
        peak = _full(torch.maximum(own, rival))
        self.odds = _full(scores).sub_(peak).exp_()
        self.total = self.odds.sum(1, keepdim=True)
        self.nll = (self.total.log() + (peak - _full(own)))[:, 0]

    def write_gradient(self, active: Tensor, weights: Tensor, out: Tensor) -> None:
        some: Tensor | slice = active if len(active) < len(self.odds) else slice(None)
        factor = self.head.scale * weights[some, None].to(self.odds.dtype)
        gradient = self.odds[some].mul_(factor / self.total[some])
        # p - 1 of the target: expm1 does not cancel as p nears 1, which is where training ends.
        gradient.scatter_(1, self.target[some], torch.expm1(-self.nll[some, None]) * factor)
        if self.softcap_slope is not None:
            gradient *= self.softcap_slope[some]
        if gradient.data_ptr() != out.data_ptr():
            overlaps = gradient.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
            out.copy_(gradient.clone() if overlaps else gradient)


class _TritonSoftmax:
    """The same in two kernels: logits are read once, active rows twice, and nothing else of their size is made."""

    def __init__(self, head: FrozenHead, scores: Tensor, targets: Tensor) -> None:
        from memlaw.losses.kernels.softmax import chunk_losses

        self.head, self.scores, self.targets = head, scores, targets
        self.losses = chunk_losses(scores, targets)
        self.nll, self.hit = self.losses.nll, self.losses.hit

    def write_gradient(self, active: Tensor, weights: Tensor, out: Tensor) -> None:
        from memlaw.losses.kernels.softmax import chunk_gradient

        chunk_gradient(
            self.scores, self.targets, active, weights, self.losses,
            softcap=self.head.softcap, scale=self.head.scale, out=out,
        )  # fmt: skip


def _softmax_for(hidden: Tensor) -> type[_Softmax]:
    return _TritonSoftmax if usable(hidden.device, hidden.dtype) else _TorchSoftmax
