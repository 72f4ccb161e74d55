"""The frozen head: everything between the last hidden state and the logits."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memlaw.core.errors import ModelError
from memlaw.model.parts import FINAL_NORMS, decoder, final_norm

NormKind = Literal["rms", "layer"]

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
        u = normalised(hidden.float(), self.norm) / math.sqrt(hidden.shape[1])
        z = u @ rows.T + offset
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


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
        gain = (plus - minus) / 2 / normalised(probe, kind)
        if torch.allclose(gain * normalised(check, kind) + shift, checked, rtol=1e-4, atol=1e-5):
            return kind, gain, shift
    raise ModelError(
        f"The final norm {type(norm).__name__} is neither an RMSNorm nor a LayerNorm: its output "
        "for a random vector does not follow from a gain and a bias, so reach(v) has no known form "
        "for this model."
    )


def normalised(x: Tensor, kind: NormKind) -> Tensor:
    """x [..., d] scaled to a mean square of one, with its mean taken off first for LayerNorm."""
    if kind == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    return x / x.square().mean(dim=-1, keepdim=True).sqrt()
