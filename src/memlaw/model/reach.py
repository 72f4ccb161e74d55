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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memlaw.core.errors import MemlawError
from memlaw.model.base import Base
from memlaw.model.head import FrozenHead, frozen_head
from memlaw.model.parts import frozen
from memlaw.model.reach_cache import cached_ids

_CANDIDATES = 128
_RANDOM_STARTS = 4
_SMALLEST_MOVE = 1e-6  # shorter steps of a unit vector drown in float32 rounding
_ON_THE_SURFACE = 1 - 1e-5  # |u| of a vector that counts as a unit vector
_LEVEL = 1e-2  # slope of log p along the sphere that counts as level where p itself is too small to tell
_UNCAPPED_STEPS = 100  # soft-capped logits are level far out: the climb without the cap leads to where it is not
_TOGETHER = 4096
"""Tokens that climb side by side, so that the few that are hard share every later pass over the head."""

REACHABLE = 0.9
"""Random targets are drawn from tokens with a reach above this."""

_JUDGED = 4096
"""Tokens of a large vocabulary whose reach is computed to draw random targets from."""

Progress = Callable[[int, int], None]
"""Called with the tokens judged so far and those to judge, after every pass over the head."""


@dataclass(frozen=True, eq=False)
class Reach:
    """Bounds on the largest probability an adapter can give each token; all tensors are [n]."""

    tokens: Tensor
    """Token ids, int64."""
    lower: Tensor
    """A probability that some unit vector u attains, float32: the number called reach(v)."""
    upper: Tensor
    """A probability that no |u| <= 1 exceeds, float32; 1 where soft-capped logits give no proof."""


@dataclass(frozen=True)
class _Search:
    """How far to search."""

    tolerance: float = 1e-4
    """Probability by which the bounds may stay apart."""
    steps: int = 2000
    chunk_elements: int = 1 << 24
    """Logits computed at once."""
    lines: tuple[float, ...] = ()
    """If given, a token is left once it is known on which side of each of these probabilities its reach lies."""
    progress: Progress | None = None

    @property
    def enough(self) -> float:
        """An attained probability above this ends the search."""
        return max(self.lines, default=1 - self.tolerance / 2)


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
    progress: Progress | None = None,
) -> Reach:
    """`reach` with its proof: the attained probability and the bound that no adapter exceeds.

    Projected gradient ascent on log p, until upper - lower < `tolerance` (a probability), float32 allows no more
    progress, or `steps` are done; with at most `chunk_elements` logits in memory. On the bundled base (1024 tokens) the
    bounds meet within 2e-4 after 35 steps. If the best u of a token lies inside the ball (other rows surround its row),
    concavity does not settle the sphere: the search tries a few more starts there, and `upper` remains that of the
    whole ball.
    """
    search = _Search(tolerance=tolerance, steps=steps, chunk_elements=chunk_elements, progress=progress)
    return _bounds(head, tokens, search)


def reachable_tokens(
    head: FrozenHead,
    *,
    above: float = 0.9,
    tokens: Sequence[int] | Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The ids, int64 in the given order, of the tokens with reach(v) > `above`.

    Much cheaper than `reach`, since a token is left once it is known on which side of `above` it lies: most are at the
    first evaluation.
    """
    bounds = reach_by_lines(head, tokens, (above,), progress)
    return bounds.tokens[bounds.lower > above]


def reach_by_lines(
    head: FrozenHead,
    tokens: Sequence[int] | Tensor | None,
    lines: Sequence[float],
    progress: Progress | None = None,
) -> Reach:
    """`reach_bounds` only as close as it takes to tell on which side of each line (a probability) a reach lies.

    So `lower > line` or `upper <= line`, wherever `reach_bounds` can tell.
    """
    return _bounds(head, tokens, _Search(lines=tuple(lines), progress=progress))


def _bounds(head: FrozenHead, tokens: Sequence[int] | Tensor | None, search: _Search) -> Reach:
    """`reach_bounds`. With `search.lines`, bounds may be as loose as these allow."""
    rows, offset = head.affine()
    wanted = _token_ids(tokens, len(rows)).to(rows.device)
    ascent = _Ascent(rows, offset, head.softcap, head.norm == "layer", search)
    judged = _Judged(len(wanted), search.progress)
    parts = [_group_bounds(ascent, group, judged) for group in torch.split(wanted, _TOGETHER)]
    return Reach(
        tokens=wanted.cpu(),
        lower=torch.cat([lower for lower, _ in parts]).cpu(),
        upper=torch.cat([upper for _, upper in parts]).cpu(),
    )


@dataclass
class _Judged:
    """Counts the tokens that need no further step."""

    total: int
    progress: Progress | None
    before: int = 0
    """Those of earlier groups."""

    def show(self, now: int) -> None:
        """Report `now` more than those of earlier groups."""
        if self.progress is not None:
            self.progress(self.before + now, self.total)


@dataclass(frozen=True, eq=False)
class _Ascent:
    """Maximises log p of one token per row of u, for many tokens at once."""

    rows: Tensor
    offset: Tensor
    softcap: float | None
    centred: bool
    search: _Search

    def starts(self, tokens: Tensor) -> Tensor:
        """Unit vectors [n, d] at which `tokens` are likely to win: their rows, less what all rows have in common.

        With the covariance C of the rows this is the linear discriminant C^-1 (row - mean). On a trained head nearly
        every token wins there, and few do at their own row. Where C would cost more than a step it is left out.
        """
        vocabulary, width = self.rows.shape
        apart = self.rows[tokens] - self.rows.mean(dim=0)
        if len(tokens) * vocabulary > 8 * width**2:
            sample = self.rows[:: max(1, vocabulary // (8 * width))]
            covariance = torch.cov(sample.T).double()
            ridge = 0.1 * covariance.diagonal().mean().clamp(min=1e-30)
            factor = torch.linalg.cholesky(covariance + ridge * torch.eye(width).to(covariance))
            apart = torch.cholesky_solve(apart.T.double(), factor).T.to(apart.dtype)
        return _onto(apart, on_sphere=True)

    def log_p(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """log p [n, vocab] of every token at `u` [n, d], and the derivative of the soft-cap, if any."""
        z = torch.addmm(self.offset, u, self.rows.T)
        if self.softcap is None:
            return z.log_softmax(dim=1), None
        squeezed = torch.tanh(z / self.softcap)
        return (self.softcap * squeezed).log_softmax(dim=1), 1 - squeezed.square()

    def value_and_gradient(self, u: Tensor, tokens: Tensor, beat: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """log p [n] of `tokens` at `u` [n, d], and its gradient [n, d] with respect to u.

        The gradient costs as much again, so it is computed only where the next step needs it, and zero elsewhere: where
        log p exceeds `beat` [n] and more is left to find out.
        """
        value, gradient = u.new_empty(len(u)), torch.zeros_like(u)
        size = max(1, self.search.chunk_elements // len(self.rows))
        for rows in torch.split(torch.arange(len(u), device=u.device), size):
            log_p, slope = self.log_p(u[rows])
            own = tokens[rows, None]
            value[rows] = log_p.gather(1, own)[:, 0]
            needed = ~self.attained(u[rows], value[rows])
            if beat is not None:
                needed &= value[rows] > beat[rows]
            by_logit = log_p[needed].exp_().neg_()  # d log p[v] / d logits = onehot(v) - p
            by_logit.scatter_add_(1, own[needed], torch.ones_like(by_logit[:, :1]))
            if slope is not None:
                by_logit *= slope[needed]
            gradient[rows[needed]] = by_logit @ self.rows
        return value, gradient

    def attained(self, u: Tensor, value: Tensor) -> Tensor:
        """Whether log p = `value` [n] at the unit vectors among `u` [n, d] leaves nothing to find out."""
        on_the_surface: Tensor = u.norm(dim=1) >= _ON_THE_SURFACE
        return on_the_surface & (value.exp() > self.search.enough)

    def climb(self, u: Tensor, tokens: Tensor, judged: _Judged, *, on_sphere: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The best u [n, d] reached, its log p [n], and the log p [n] that its tangent plane allows.

        Each token has its own step size: doubled after a step that helps, quartered after one that does not. A token
        leaves the batch once its tangent plane promises less than the tolerance, once its steps are so short that
        rounding decides whether they help, or once the question asked about it is answered.
        """
        best = u.clone()
        value, gradient = self.value_and_gradient(best, tokens)
        step = 1 / gradient.norm(dim=1).clamp(min=1e-12)
        active = torch.arange(len(tokens), device=tokens.device)
        for _ in range(self.search.steps):
            moves = step[active] * gradient[active].norm(dim=1) > _SMALLEST_MOVE
            active = active[moves & self._open(best[active], value[active], gradient[active], on_sphere=on_sphere)]
            judged.show(len(tokens) - len(active))
            if len(active) == 0:
                break
            trial = best[active] + step[active, None] * gradient[active]
            trial = _onto(trial, on_sphere=on_sphere)
            trial_value, trial_gradient = self.value_and_gradient(trial, tokens[active], beat=value[active])
            better = trial_value > value[active]
            step[active] *= torch.where(better, 2.0, 0.25)
            moved = active[better]
            best[moved] = trial[better]
            value[moved] = trial_value[better]
            gradient[moved] = trial_gradient[better]
        ceiling = self._ceiling(best, value, gradient)
        return best, value, torch.where(self.attained(best, value), 0, ceiling)

    @staticmethod
    def _ceiling(u: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """The largest log p [n] on the tangent plane at `u` over the ball |v| <= 1: value + max of gradient . (v - u).

        It bounds the concave problem, on the sphere as well.
        """
        promise: Tensor = gradient.norm(dim=1) - (gradient * u).sum(dim=1)
        return (value + promise.clamp(min=0)).clamp(max=0)

    def _open(self, u: Tensor, value: Tensor, gradient: Tensor, *, on_sphere: bool) -> Tensor:
        """Whether one more step [n] may change the answer.

        Differences are taken between probabilities of two logarithms: the factors of exp(log p) * expm1(gain) would be
        0 and infinity where log p starts at -100 or less, as it does on real vocabularies.
        """
        going = ~self.attained(u, value)
        if self.softcap is None:
            p, ceiling = value.exp(), self._ceiling(u, value, gradient).exp()
            going &= ceiling - p > self.search.tolerance / 2
            if self.search.lines:
                attained = torch.where(u.norm(dim=1) >= _ON_THE_SURFACE, p, 0)
                going &= _undecided(attained, ceiling, self.search.lines)
        if on_sphere:
            # The slope along the sphere, taken around the nearer of u and -u: zero exactly where it is level.
            slope = (gradient.norm(dim=1) - (gradient * u).sum(dim=1).abs()).clamp(min=0)
            gain = (value + slope).clamp(max=0).exp() - value.exp()
            going &= (gain > self.search.tolerance / 2) | (slope > _LEVEL)
        return going


def _group_bounds(ascent: _Ascent, tokens: Tensor, judged: _Judged) -> tuple[Tensor, Tensor]:
    """Attained probability and proven bound, each float32 [n], for tokens that climb side by side."""
    start = ascent.starts(tokens)
    if ascent.softcap is not None:
        uncapped = replace(ascent, softcap=None, search=replace(ascent.search, steps=_UNCAPPED_STEPS, lines=()))
        guess, _, _ = uncapped.climb(start, tokens, _Judged(0, None), on_sphere=True)
        lower, upper = _best_on_sphere(ascent, guess, tokens), torch.ones_like(guess[:, 0])
    else:
        u, value, ceiling = ascent.climb(start, tokens, judged, on_sphere=False)
        lower, upper = value.exp(), ceiling.exp()
        inside = u.norm(dim=1) < _ON_THE_SURFACE
        if ascent.search.lines:
            inside &= _undecided(torch.zeros_like(upper), upper, ascent.search.lines)
        if inside.any():
            lower[inside] = _best_on_sphere(ascent, u[inside], tokens[inside])
    judged.before += len(tokens)
    judged.show(0)
    return lower, upper


def _undecided(lower: Tensor, upper: Tensor, lines: Sequence[float]) -> Tensor:
    """Whether some line lies between the bounds [n]."""
    at = lower.new_tensor(lines)
    return ((lower[:, None] <= at) & (at < upper[:, None])).any(dim=1)


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
        todo = (best <= ascent.search.enough).nonzero()[:, 0]
        # A zero vector has no direction to project onto the sphere: take any.
        start = torch.where(start.norm(dim=1, keepdim=True) > 0, start, noise[0])[todo]
        _, value, _ = ascent.climb(_onto(start, on_sphere=True), tokens[todo], _Judged(0, None), on_sphere=True)
        best[todo] = torch.maximum(best[todo], value.exp())
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


def reachable_ids(base: Base, progress: Progress | None = None) -> list[int]:
    """Ids of ordinary tokens with reach above REACHABLE, ascending; `progress` is told how many are judged.

    Of a large vocabulary, only 4,096 tokens are considered, drawn with a fixed seed: a task must not change for a base.
    """
    special = set(base.tokenizer.all_special_ids)
    ordinary = [token for token in sorted(base.tokenizer.get_vocab().values()) if token not in special]
    if len(ordinary) > _JUDGED:
        drawn = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0))[:_JUDGED]
        ordinary = sorted(ordinary[place] for place in drawn.tolist())
    with frozen(base.model):
        head = frozen_head(base.model)

        def search() -> list[int]:
            return reachable_tokens(head, above=REACHABLE, tokens=ordinary, progress=progress).tolist()

        return search() if len(ordinary) < _JUDGED else cached_ids(head, ordinary, REACHABLE, search)
