"""Reach: the largest probability that any adapter can give a token under the frozen head.

The head and the final norm of the base are frozen. Whatever an adapter does below them, the last hidden state leaves
the norm as `h = g * u * sqrt(d) (+ bias)` with `|u| = 1`, so

    reach(v) = max over |u| = 1 of softmax(head(h(u)))[v].

A token with reach(v) <= 1/2 can never be ordered (p > 1/2), at any rank, with any method, after any number of steps.
Reach is a property of the base alone and can be computed before training; memlaw draws random targets only from tokens
with a high one. The threshold p > 1/2 is from arXiv 2605.30260; reach is memlaw's own.

Log p is concave in u as long as the logits are linear in it. Its maximum over the ball |u| <= 1 is therefore unique,
and the tangent plane at any point bounds how much higher it can be: that is `Reach.upper`. (The ball, not only the
sphere, because the epsilon of the norm keeps |u| a little below 1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.core.errors import MemlawError
from memlaw.model.base import Base
from memlaw.model.head import FrozenHead, frozen_head
from memlaw.model.parts import frozen

_CANDIDATES = 128
_RANDOM_STARTS = 4
_SMALLEST_MOVE = 1e-6  # shorter steps of a unit vector drown in float32 rounding

REACHABLE = 0.9
"""Random targets are drawn from tokens with a reach above this."""

_JUDGED = 4096
"""Tokens of a large vocabulary whose reach is computed to draw random targets from."""


@dataclass(frozen=True, eq=False)
class Reach:
    """Bounds on the largest probability an adapter can give each token; all tensors are [n]."""

    tokens: Tensor
    """Token ids, int64."""
    lower: Tensor
    """A probability that some unit vector u attains, float32: the number called reach(v)."""
    upper: Tensor
    """A probability that no |u| <= 1 exceeds, float32; 1 where soft-capped logits give no proof."""


def reach(
    head: FrozenHead,
    tokens: Sequence[int] | Tensor | None = None,
    *,
    tolerance: float = 1e-4,
    steps: int = 2000,
    chunk_elements: int = 1 << 24,
) -> Tensor:
    """Largest probability, float32 [n], that any adapter below the final norm can give each of n tokens.

    Same as `max over |u| = 1 of softmax(rows @ u + offset)[v]`, with all rows of the head in the softmax. `tokens=None`
    means the whole vocabulary. See `reach_bounds` for the other parameters. Raises MemlawError for ids that the head
    does not have.
    """
    return reach_bounds(head, tokens, tolerance=tolerance, steps=steps, chunk_elements=chunk_elements).lower


def reach_bounds(
    head: FrozenHead,
    tokens: Sequence[int] | Tensor | None = None,
    *,
    tolerance: float = 1e-4,
    steps: int = 2000,
    chunk_elements: int = 1 << 24,
) -> Reach:
    """`reach` with its proof: the attained probability and the bound that no adapter exceeds.

    Projected gradient ascent on log p from u = normalize(rows[v]), until upper - lower < `tolerance` (a probability),
    float32 allows no more progress, or `steps` are done; in chunks of at most `chunk_elements` logits. On the bundled
    base (1024 tokens) the bounds meet within 2e-4 after 35 steps. If the best u of a token lies inside the ball (other
    rows surround its row), concavity does not settle the sphere: the search tries a few more starts there, and `upper`
    remains that of the whole ball.
    """
    rows, offset = head.affine()
    wanted = _token_ids(tokens, len(rows)).to(rows.device)
    size = max(1, chunk_elements // len(rows))
    ascent = _Ascent(rows, offset, head.softcap, head.norm == "layer", tolerance, steps)
    parts = [_chunk_bounds(ascent, wanted[first : first + size]) for first in range(0, max(1, len(wanted)), size)]
    return Reach(
        tokens=wanted.cpu(),
        lower=torch.cat([lower for lower, _ in parts]).cpu(),
        upper=torch.cat([upper for _, upper in parts]).cpu(),
    )


def reachable_tokens(head: FrozenHead, *, above: float = 0.9, tokens: Sequence[int] | Tensor | None = None) -> Tensor:
    """The ids, int64 in the given order, of the tokens with reach(v) > `above`."""
    bounds = reach_bounds(head, tokens)
    return bounds.tokens[bounds.lower > above]


@dataclass(frozen=True, eq=False)
class _Ascent:
    """Maximises log p of one token per row of u, for many tokens at once."""

    rows: Tensor
    offset: Tensor
    softcap: float | None
    centred: bool
    tolerance: float
    steps: int

    def log_p(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """log p [n, vocab] of every token at `u` [n, d], and the derivative of the soft-cap, if any."""
        z = u @ self.rows.T + self.offset
        if self.softcap is None:
            return z.log_softmax(dim=1), None
        squeezed = torch.tanh(z / self.softcap)
        return (self.softcap * squeezed).log_softmax(dim=1), 1 - squeezed.square()

    def value_and_gradient(self, u: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """log p [n] of `tokens` at `u` [n, d], and its gradient [n, d] with respect to u."""
        log_p, slope = self.log_p(u)
        value = log_p.gather(1, tokens[:, None])[:, 0]
        by_logit = log_p.exp_().neg_()  # d log p[v] / d logits = onehot(v) - p, in place: the largest tensor here
        by_logit.scatter_add_(1, tokens[:, None], torch.ones_like(by_logit[:, :1]))
        if slope is not None:
            by_logit *= slope
        return value, by_logit @ self.rows

    def climb(self, u: Tensor, tokens: Tensor, *, on_sphere: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The best u [n, d] reached, its log p [n], and the log p [n] that its tangent plane allows.

        Each token has its own step size: doubled after a step that helps, quartered after one that does not. A token
        leaves the batch once its tangent plane promises less than the tolerance, or once its steps are so short that
        rounding decides whether they help.
        """
        best = u.clone()
        value, gradient = self.value_and_gradient(best, tokens)
        step = 1 / gradient.norm(dim=1).clamp(min=1e-12)
        active = torch.arange(len(tokens), device=tokens.device)
        for _ in range(self.steps):
            promise = self._promise(best[active], gradient[active], on_sphere=on_sphere)
            left = value[active].exp() * torch.expm1(promise)
            moves = step[active] * gradient[active].norm(dim=1) > _SMALLEST_MOVE
            active = active[(left > self.tolerance / 2) & moves]
            if len(active) == 0:
                break
            trial = best[active] + step[active, None] * gradient[active]
            trial = _onto(trial, on_sphere=on_sphere)
            trial_value, trial_gradient = self.value_and_gradient(trial, tokens[active])
            better = trial_value > value[active]
            step[active] *= torch.where(better, 2.0, 0.25)
            moved = active[better]
            best[moved] = trial[better]
            value[moved] = trial_value[better]
            gradient[moved] = trial_gradient[better]
        ceiling = value + self._promise(best, gradient, on_sphere=False)
        return best, value, ceiling

    @staticmethod
    def _promise(u: Tensor, gradient: Tensor, *, on_sphere: bool) -> Tensor:
        """How much more log p [n] the tangent plane at `u` allows: max over |v| <= 1 of gradient . (v - u).

        Over the ball this bounds the concave problem. On the sphere it is taken around the nearer of u and -u, so that
        it is zero exactly where the gradient has no component along the sphere.
        """
        along = (gradient * u).sum(dim=1)
        best: Tensor = gradient.norm(dim=1)
        return (best - (along.abs() if on_sphere else along)).clamp(min=0)


def _chunk_bounds(ascent: _Ascent, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attained probability and proven bound, each float32 [n], for one chunk of tokens."""
    own = ascent.rows[tokens]
    if ascent.softcap is not None:
        return _best_on_sphere(ascent, own, tokens), torch.ones_like(own[:, 0])
    u, value, ceiling = ascent.climb(_onto(own, on_sphere=True), tokens, on_sphere=False)
    lower, upper = value.exp(), ceiling.exp().clamp(max=1)
    inside = (u.norm(dim=1) < 1 - 1e-5).nonzero()[:, 0]
    if len(inside):
        lower[inside] = _best_on_sphere(ascent, u[inside], tokens[inside])
    return lower, upper


def _best_on_sphere(ascent: _Ascent, guess: Tensor, tokens: Tensor) -> Tensor:
    """Largest p [n] over ascents on the sphere from several starts. This is a search, not a proof.

    The starts are `guess`, each token's own row, and for each token the best few of a common set of random points.
    """
    n, width = guess.shape
    noise = torch.randn(_CANDIDATES, width, generator=torch.Generator().manual_seed(0)).to(guess)
    if ascent.centred:
        noise -= noise.mean(dim=1, keepdim=True)
    noise = _onto(noise, on_sphere=True)
    ranked = ascent.log_p(noise)[0][:, tokens].topk(_RANDOM_STARTS, dim=0).indices
    best = guess.new_zeros(n)
    for start in (guess, ascent.rows[tokens], *noise[ranked]):
        # A zero vector has no direction to project onto the sphere: take any.
        start = torch.where(start.norm(dim=1, keepdim=True) > 0, start, noise[0])
        _, value, _ = ascent.climb(_onto(start, on_sphere=True), tokens, on_sphere=True)
        best = torch.maximum(best, value.exp())
    return best


def _onto(u: Tensor, *, on_sphere: bool) -> Tensor:
    """Nearest point [n, d] of the unit sphere, or of the unit ball |u| <= 1."""
    length: Tensor = u.norm(dim=1, keepdim=True)
    return u / length.clamp(min=1e-30 if on_sphere else 1)


def _token_ids(tokens: Sequence[int] | Tensor | None, vocabulary: int) -> Tensor:
    if tokens is None:
        return torch.arange(vocabulary)
    ids = torch.as_tensor(tokens, dtype=torch.int64).flatten()
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise MemlawError(
            f"Token ids from {int(ids.min())} to {int(ids.max())} were requested, but the head has rows 0 to "
            f"{vocabulary - 1}. They come from another tokenizer: use the one saved with the model."
        )
    return ids


def reachable_ids(base: Base) -> list[int]:
    """Ids of ordinary tokens with reach above REACHABLE, ascending.

    Of a large vocabulary, only 4,096 tokens are considered, drawn with a fixed seed: a task must not change for a base.
    """
    special = set(base.tokenizer.all_special_ids)
    ordinary = [token for token in sorted(base.tokenizer.get_vocab().values()) if token not in special]
    if len(ordinary) > _JUDGED:
        drawn = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0))[:_JUDGED]
        ordinary = sorted(ordinary[place] for place in drawn.tolist())
    with frozen(base.model):
        return reachable_tokens(frozen_head(base.model), above=REACHABLE, tokens=ordinary).tolist()
