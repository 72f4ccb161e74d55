"""What the frozen head allows: the largest probability any adapter can give a token.

The head and the final norm of the base are frozen. Whatever an adapter does below them, the last
hidden state leaves the norm as `h = g * u * sqrt(d) (+ bias)` with `|u| = 1`, so

    reach(v) = max over |u| = 1 of softmax(head(h(u)))[v].

A token with reach(v) <= 1/2 can never be ordered (p > 1/2): no rank, no method, no number of steps
makes it so. That is a property of the base alone, it needs no training to know, and memlaw draws
random targets only from tokens that can be reached. The threshold p > 1/2 is from arXiv 2605.30260;
reachability is memlaw's own.

Log p is concave in u as long as the logits are linear in it. Its maximum over the ball |u| <= 1 is
therefore unique, and the tangent plane at any point proves how much more there can be: that is
`Reach.upper`. (The ball, not only the sphere: the epsilon of the norm keeps |u| a little below 1.)
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memlaw.errors import MemlawError, ModelError
from memlaw.model import FINAL_NORMS, decoder, final_norm

NormKind = Literal["rms", "layer"]

_CANDIDATES = 128
_RANDOM_STARTS = 4
_SMALLEST_MOVE = 1e-6  # of a unit vector in float32
_LOGIT_ERROR = {torch.bfloat16: 0.02, torch.float16: 0.003}  # relative; rounding alone makes about a fifth of it
_FLOAT_LOGIT_ERROR = 2e-3  # in float32 and better: the epsilon of the norm, which has no place in the limit


@dataclass(frozen=True, eq=False)
class FrozenHead:
    """Everything between the last hidden state and the logits; no adapter touches it.

    logits = softcap * tanh(z / softcap) with z = scale * (weight @ (norm_weight * u * sqrt(d) +
    norm_bias) + bias).
    """

    weight: Tensor
    """[vocab, d], the rows of the output embedding."""
    norm: NormKind = "rms"
    """`rms`: u is any unit vector. `layer`: any of mean zero, as LayerNorm subtracts the mean."""
    norm_weight: Tensor | None = None
    """[d], the gain g of the final norm; None is a gain of one."""
    norm_bias: Tensor | None = None
    """[d], what the final norm adds; None is nothing."""
    bias: Tensor | None = None
    """[vocab], what the head adds; None is nothing."""
    softcap: float | None = None
    """Logits are squeezed into (-softcap, softcap) (Gemma 2); None is no cap."""
    scale: float = 1.0
    """What the logits are multiplied by before the cap (Cohere, Granite)."""

    def affine(self) -> tuple[Tensor, Tensor]:
        """`rows` [vocab, d] and `offset` [vocab], float32, such that z = rows @ u + offset."""
        weight = self.weight.detach().float()
        width = weight.shape[1]
        rows = weight * math.sqrt(width)
        if self.norm_weight is not None:
            rows = rows * self.norm_weight.detach().float()
        if self.norm == "layer":
            rows = rows - rows.mean(dim=1, keepdim=True)
        offset = weight.new_zeros(len(weight))
        if self.norm_bias is not None:
            offset = offset + weight @ self.norm_bias.detach().float()
        if self.bias is not None:
            offset = offset + self.bias.detach().float()
        return rows * self.scale, offset * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab], float32, of what enters the final norm: hidden states [n, d]."""
        rows, offset = self.affine()
        u = _normalised(hidden.float(), self.norm) / math.sqrt(hidden.shape[1])
        z = u @ rows.T + offset
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


@dataclass(frozen=True, eq=False)
class Reach:
    """Bounds on the largest probability an adapter can give each token; all tensors are [n]."""

    tokens: Tensor
    """Token ids, int64."""
    lower: Tensor
    """A probability that some unit vector u really attains, float32: the number called reach(v)."""
    upper: Tensor
    """A probability that no |u| <= 1 exceeds, float32; 1 where soft-capped logits prove nothing."""


def reach(
    head: FrozenHead,
    tokens: Sequence[int] | Tensor | None = None,
    *,
    tolerance: float = 1e-4,
    steps: int = 2000,
    chunk_elements: int = 1 << 24,
) -> Tensor:
    """Largest probability, float32 [n], that any adapter below the final norm can give n tokens.

    Same as `max over |u| = 1 of softmax(rows @ u + offset)[v]`. All rows of the head compete,
    whichever tokens are asked for; `tokens=None` asks for the whole vocabulary. See `reach_bounds`
    for the tolerance.
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
    """`reach` with its proof: attained probability and the bound no adapter exceeds.

    Projected gradient ascent on log p, started at u = normalize(rows[v]), until upper - lower <
    `tolerance` (a probability), float32 allows no more progress, or `steps` ascents are done; in
    chunks whose logits hold at most `chunk_elements` numbers. On the bundled base (1024 tokens) the
    bounds meet within 2e-4 after 35 ascents. A token whose best u lies inside the ball (its row is surrounded by
    other rows) is not settled by concavity on the sphere itself: it gets a few more starts there,
    and its `upper` stays that of the whole ball.
    """
    rows, offset = head.affine()
    wanted = _token_ids(tokens, len(rows)).to(rows.device)
    size = max(1, chunk_elements // len(rows))
    ascent = _Ascent(rows, offset, head.softcap, head.norm == "layer", tolerance, steps)
    parts = [_bounds(ascent, wanted[first : first + size]) for first in range(0, max(1, len(wanted)), size)]
    return Reach(
        tokens=wanted.cpu(),
        lower=torch.cat([lower for lower, _ in parts]).cpu(),
        upper=torch.cat([upper for _, upper in parts]).cpu(),
    )


def reachable_tokens(head: FrozenHead, *, above: float = 0.9, tokens: Sequence[int] | Tensor | None = None) -> Tensor:
    """The ids, int64 and in the order asked for, of the tokens with reach(v) > `above`."""
    bounds = reach_bounds(head, tokens)
    return bounds.tokens[bounds.lower > above]


def frozen_head(model: nn.Module) -> FrozenHead:
    """Read head, final norm, soft-cap and scale off a Hugging Face causal language model.

    The gain and bias of the norm are measured, by passing vectors through it, rather than read by
    name: Gemma multiplies by 1 + weight, others by weight, and what counts is what comes out.
    Before it is returned, the head must reproduce the model's own logits on a few tokens.
    """
    source: Any = model
    output = source.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), Tensor):
        raise ModelError(
            f"{type(model).__name__} has no output embedding with a weight, so it gives no token a "
            "probability to measure. Pass a causal language model (AutoModelForCausalLM)."
        )
    weight = output.weight.detach()
    norm = _known_norm(model)
    kind, gain, shift = _measure_norm(norm, weight.shape[1])
    config = source.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    bias = getattr(output, "bias", None)
    head = FrozenHead(
        weight=weight,
        norm=kind,
        norm_weight=gain.to(weight.device),
        norm_bias=shift.to(weight.device),
        bias=None if bias is None else bias.detach(),
        softcap=None if softcap is None else float(softcap),
        scale=scale,
    )
    _require_own_logits(head, model, norm)
    return head


@dataclass(frozen=True, eq=False)
class _Ascent:
    """Maximises log p of one token per row of u, all at once; the constants of that problem."""

    rows: Tensor
    offset: Tensor
    softcap: float | None
    centred: bool
    tolerance: float
    steps: int

    def log_p(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """log p [n, vocab] of every token at `u` [n, d], and the slope of the soft-cap, if any."""
        z = u @ self.rows.T + self.offset
        if self.softcap is None:
            return z.log_softmax(dim=1), None
        squeezed = torch.tanh(z / self.softcap)
        return (self.softcap * squeezed).log_softmax(dim=1), 1 - squeezed.square()

    def value_and_gradient(self, u: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """log p [n] of `tokens` at `u` [n, d], and its gradient [n, d] with respect to u."""
        log_p, slope = self.log_p(u)
        value = log_p.gather(1, tokens[:, None])[:, 0]
        pull = log_p.exp_().neg_()
        pull.scatter_add_(1, tokens[:, None], torch.ones_like(pull[:, :1]))
        if slope is not None:
            pull *= slope
        return value, pull @ self.rows

    def climb(self, u: Tensor, tokens: Tensor, *, on_sphere: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Best u [n, d] found, its log p [n], and the log p [n] that its tangent plane allows.

        Each token has its own step size: doubled after a step that helps, quartered after one that
        does not. A token leaves the batch once what its tangent plane still promises is below the
        tolerance, or once its steps are so short that rounding decides whether they help.
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
        """How much more log p [n] the tangent plane at `u` allows.

        Same as the max over |v| <= 1 of gradient . (v - u). Over the ball this bounds the whole
        concave problem. On the sphere it is taken around the nearer of u and -u: zero exactly where
        the gradient has no part along the sphere.
        """
        along = (gradient * u).sum(dim=1)
        best: Tensor = gradient.norm(dim=1)
        return (best - (along.abs() if on_sphere else along)).clamp(min=0)


def _bounds(ascent: _Ascent, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Attained probability and proven bound, each float32 [n], of one chunk of tokens."""
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
    """Largest p [n] over ascents on the sphere from several starts.

    They are `guess`, each token's own row and random points: the best few, for each token, of a
    common set. This is a search, not a proof.
    """
    n, width = guess.shape
    noise = torch.randn(_CANDIDATES, width, generator=torch.Generator().manual_seed(0)).to(guess)
    if ascent.centred:
        noise -= noise.mean(dim=1, keepdim=True)
    noise = _onto(noise, on_sphere=True)
    ranked = ascent.log_p(noise)[0][:, tokens].topk(_RANDOM_STARTS, dim=0).indices
    best = guess.new_zeros(n)
    for start in (guess, ascent.rows[tokens], *noise[ranked]):
        # A zero vector has no direction to be stretched along: take any.
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
            f"Token ids from {int(ids.min())} to {int(ids.max())} were asked for, but the head has "
            f"rows 0 to {vocabulary - 1}. They come from another tokenizer: use the one saved with "
            "the model."
        )
    return ids


def _known_norm(model: nn.Module) -> nn.Module:
    norm = final_norm(model)
    if norm is None:
        raise ModelError(
            f"{type(decoder(model)).__name__} has no final norm under any known name "
            f"({', '.join(FINAL_NORMS)}), so it is not known what limits its last hidden state. "
            "Build a FrozenHead by hand if you know the norm."
        )
    return norm


def _require_own_logits(head: FrozenHead, model: nn.Module, norm: nn.Module) -> None:
    """Refuse a head that does not give the model's own logits: families invent new multipliers."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        with torch.no_grad():
            ids = torch.arange(min(8, len(head.weight)), device=head.weight.device)
            wanted = model(input_ids=ids[None], use_cache=False).logits[0].float()
    finally:
        hook.remove()
    if not bool(wanted.isfinite().all()):
        raise ModelError(
            f"{type(model).__name__} gives logits that are not finite: its weights hold NaN, or its "
            "precision overflows. Check the weights, or load it in float32."
        )
    states = seen[-1][0]
    live = states.norm(dim=-1) > 0  # a padding token's embedding is all zeros and has no direction
    error = (head.logits(states[live]) - wanted[live]).norm() / wanted[live].norm()
    if not error < _LOGIT_ERROR.get(head.weight.dtype, _FLOAT_LOGIT_ERROR):
        raise ModelError(
            f"The logits of {type(model).__name__} are not those of its final norm and output "
            f"embedding: they differ by {float(error):.1%}. Something else scales or shifts them, "
            "so reach(v) would be wrong. Build a FrozenHead by hand if you know what it is."
        )


def _measure_norm(norm: nn.Module, width: int) -> tuple[NormKind, Tensor, Tensor]:
    """Kind, gain [d] and bias [d], float32, such that norm(x) = gain * u * sqrt(d) + bias."""
    norm = copy.deepcopy(norm).cpu().float()
    # Large entries, so that the norm's epsilon does not show; alternating signs, so that no entry
    # is near the mean.
    probe = 1e3 * torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0)
    check = 1e3 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plus, minus, checked = (norm(x[None, None])[0, 0] for x in (probe, -probe, check))
    shift = (plus + minus) / 2
    kinds: tuple[NormKind, NormKind] = ("rms", "layer")
    for kind in kinds:
        gain = (plus - minus) / 2 / _normalised(probe, kind)
        if torch.allclose(gain * _normalised(check, kind) + shift, checked, rtol=1e-4, atol=1e-5):
            return kind, gain, shift
    raise ModelError(
        f"The final norm {type(norm).__name__} is neither an RMSNorm nor a LayerNorm: its output "
        "for a random vector does not follow from a gain and a bias, so reach(v) has no known form "
        "for this model."
    )


def _normalised(x: Tensor, kind: NormKind) -> Tensor:
    """x [..., d] scaled to a mean square of one, with its mean taken off first for LayerNorm."""
    if kind == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    return x / x.square().mean(dim=-1, keepdim=True).sqrt()
