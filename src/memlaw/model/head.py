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

_LOGIT_ERROR = {torch.bfloat16: 0.02, torch.float16: 0.003}  # relative; rounding alone causes about a fifth of it
_FLOAT_LOGIT_ERROR = 2e-3  # float32 and better: products in TF32 cause up to half of it
_ROWS_AT_ONCE = 8192  # of a head copied to float32 together: 21 MB at width 640, where the whole may take 671 MB
_TINY = 1e-6  # entries so small that the norm's epsilon shows


@dataclass(frozen=True, eq=False)
class FrozenHead:
    """Everything between the last hidden state and the logits; no adapter touches it.

    logits = softcap * tanh(z / softcap) with z = scale * (weight @ (norm_weight * u * sqrt(d) + norm_bias) + bias) and
    u [d] the direction of the last hidden state, a unit vector shortened by the epsilon of the norm.
    """

    weight: Tensor
    """[vocab, d], the rows of the output embedding."""
    norm: NormKind = "rms"
    """`rms`: u is any unit vector. `layer`: any unit vector of mean zero, since LayerNorm subtracts the mean."""
    norm_weight: Tensor | None = None
    """[d], the gain of the final norm; None means one."""
    norm_bias: Tensor | None = None
    """[d], the bias of the final norm; None means zero."""
    bias: Tensor | None = None
    """[vocab], the bias of the head; None means zero."""
    softcap: float | None = None
    """Logits are squeezed into (-softcap, softcap) (Gemma 2); None means no cap."""
    scale: float = 1.0
    """The factor on the logits before the cap (Cohere, Granite)."""
    epsilon: float = 0.0
    """Added by the norm to the mean square: |u| = (1 + epsilon / mean square)^(-1/2). At a random start it matters."""

    def affine(self) -> tuple[Tensor, Tensor]:
        """`rows` [vocab, d] and `offset` [vocab], float32, such that z = rows @ u + offset."""
        return self._affine(slice(None))

    def _affine(self, part: slice) -> tuple[Tensor, Tensor]:
        """`affine` for the tokens of `part`: a copy in float32 of their rows, and no more."""
        weight = self.weight[part].detach().float()
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
            offset = offset + self.bias[part].detach().float()
        return rows * self.scale, offset * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, vocab], float32, of hidden states [n, d] before the final norm.

        Takes memory for the logits and for `_ROWS_AT_ONCE` rows of the head, whatever its vocabulary.
        """
        u = normalised(hidden.float(), self.norm, self.epsilon) / math.sqrt(hidden.shape[1])
        z = u.new_empty(len(u), len(self.weight))  # before the parts, which else leave gaps in memory between them
        for start in range(0, len(self.weight), _ROWS_AT_ONCE):
            rows, offset = self._affine(slice(start, start + _ROWS_AT_ONCE))
            z[:, start : start + _ROWS_AT_ONCE] = u @ rows.T + offset
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


def frozen_head(model: nn.Module) -> FrozenHead:
    """Extract head, final norm, soft-cap and scale from a Hugging Face causal language model.

    Gain, bias and epsilon of the norm are measured by passing vectors through it, since names mislead: Gemma multiplies
    by 1 + weight, others by weight. Raises ModelError for a model without a head, a norm that is neither
    RMSNorm nor LayerNorm, and a result that does not reproduce the model's own logits on a few tokens.
    """
    source: Any = model
    output = source.get_output_embeddings()
    if output is None or not isinstance(getattr(output, "weight", None), Tensor):
        raise ModelError(
            f"{type(model).__name__} has no output embedding with a weight, so it gives tokens no probabilities. Pass "
            "a causal language model (AutoModelForCausalLM)."
        )
    weight = output.weight.detach()
    norm = _known_norm(model)
    kind, gain, shift, epsilon = _measure_norm(norm, weight.shape[1])
    config = source.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    multiplier = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    bias = getattr(output, "bias", None)
    head = FrozenHead(
        weight=weight,
        norm=kind,
        norm_weight=gain.to(weight.device),
        norm_bias=shift.to(weight.device),
        bias=None if bias is None else bias.detach(),
        softcap=None if softcap is None else float(softcap),
        scale=multiplier / divisor,
        epsilon=epsilon,
    )
    _require_own_logits(head, model, norm)
    return head


def _known_norm(model: nn.Module) -> nn.Module:
    norm = final_norm(model)
    if norm is None:
        raise ModelError(
            f"{type(decoder(model)).__name__} has no final norm under any known name ({', '.join(FINAL_NORMS)}), so "
            "nothing bounds its last hidden state. Build a FrozenHead yourself if you know the norm."
        )
    return norm


def _require_own_logits(head: FrozenHead, model: nn.Module, norm: nn.Module) -> None:
    """Refuse a head that does not reproduce the model's own logits: new families invent new multipliers."""
    norm_inputs: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: norm_inputs.append(inputs[0].detach()))
    try:
        with torch.no_grad():
            ids = torch.arange(min(8, len(head.weight)), device=head.weight.device)
            wanted = model(input_ids=ids[None], use_cache=False).logits[0].float()
    finally:
        hook.remove()
    if not bool(wanted.isfinite().all()):
        raise ModelError(
            f"{type(model).__name__} gives logits that are not finite: its weights hold NaN, or its precision "
            "overflows. Check the weights, or load it in float32."
        )
    states = norm_inputs[-1][0]
    live = states.norm(dim=-1) > 0  # the embedding of a padding token can be all zeros, which has no direction
    error = (head.logits(states[live]) - wanted[live]).norm() / wanted[live].norm()
    if not error < _LOGIT_ERROR.get(head.weight.dtype, _FLOAT_LOGIT_ERROR):
        raise ModelError(
            f"The logits of {type(model).__name__} differ by {float(error):.1%} from those computed from its final "
            "norm and output embedding. Something else scales or shifts them, so losses and reach(v) would be wrong. "
            "Build a FrozenHead yourself if you know what it is."
        )


def _measure_norm(norm: nn.Module, width: int) -> tuple[NormKind, Tensor, Tensor, float]:
    """Kind, gain [d], bias [d], both float32, and epsilon such that norm(x) = gain * u * sqrt(d) + bias."""
    norm = copy.deepcopy(norm).cpu().float()
    signs = torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0)  # they keep every entry away from the mean
    probe = 1e3 * signs  # large entries hide epsilon
    check = 1e3 * torch.randn(width, generator=torch.Generator().manual_seed(0))
    inputs = (probe, -probe, check, _TINY * signs, -_TINY * signs)
    with torch.no_grad():
        plus, minus, checked, tiny_plus, tiny_minus = (norm(x[None, None])[0, 0] for x in inputs)
    shift = (plus + minus) / 2
    kinds: tuple[NormKind, NormKind] = ("rms", "layer")
    for kind in kinds:
        gain = (plus - minus) / 2 / normalised(probe, kind)
        if torch.allclose(gain * normalised(check, kind) + shift, checked, rtol=1e-4, atol=1e-5):
            return kind, gain, shift, _measure_epsilon((tiny_plus - tiny_minus) / 2, (plus - minus) / 2)
    raise ModelError(
        f"The final norm {type(norm).__name__} is neither an RMSNorm nor a LayerNorm: a gain and a bias do not explain "
        "its output, so memlaw cannot compute losses or reach(v) for this model. Use another base."
    )


def _measure_epsilon(tiny: Tensor, large: Tensor) -> float:
    """Epsilon, from what the norm makes of one direction [d] with entries of size _TINY, and with large ones.

    tiny / large = _TINY / sqrt(_TINY^2 + epsilon).
    """
    shrunk = float(tiny.double().norm() / large.double().norm().clamp(min=1e-30))
    if shrunk == 0:  # a gain of zeros hides the state itself
        return 0.0
    epsilon = _TINY**2 * (shrunk**-2 - 1)
    return epsilon if epsilon > _TINY**2 / 100 else 0.0  # below, rounding


def normalised(x: Tensor, kind: NormKind, epsilon: float = 0.0) -> Tensor:
    """x [..., d] divided by the root of its mean square + epsilon; for LayerNorm, its mean is subtracted first."""
    if kind == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    return x / (x.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
