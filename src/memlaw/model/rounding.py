"""A base with the weights it has where it runs: quantised and dequantised, or cast to 16 bits and back.

An adapter adds to what the weights compute, so it is trained for one set of weights. A server that quantises the base
moves them all, and no margin on the original weights covers that. The formats are those of llama.cpp's
`ggml_quantize_chunk` without an importance matrix: blocks of 32 neighbours in a row share a scale d in float16.

    q8_0: d = max |x| / 127,  q = round(x / d)              x ~ d q
    q5_0: d = x_max / -16,    q = floor(x / d + 16.5) <= 31  x ~ d (q - 16)
    q4_0: d = x_max / -8,     q = floor(x / d + 8.5) <= 15   x ~ d (q - 8)

where x_max is the number of largest magnitude, with its sign.

Quantised are the matrices that `llama-quantize --pure` quantises (llama.cpp, src/llama-quant.cpp,
`tensor_allows_quantization`): the weights of all linear modules, of the input embedding and of the head, but no norms,
biases, position embeddings or routers of experts. A row that is not made of whole blocks stays in float16. Without
`--pure`, llama-quantize gives the head, or the embedding tied to it, more bits: train on that file itself
(`--model FILE.gguf`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memlaw.core.errors import ModelError, suggest
from memlaw.core.precision import MARGINS, QUANTISED
from memlaw.model.base import DTYPES, Base

BLOCK = 32
"""Neighbours in a row that share a scale."""

_LEVELS = {"q5_0": 16, "q4_0": 8}

_POSITIONS = ("wpe", "embed_positions", "position_embeddings")
_ROUTERS = ("gate", "router", "shared_expert_gate")
"""Last part of the name of modules whose weights llama.cpp leaves as they are."""


def rounded(weight: Tensor, precision: str) -> Tensor:
    """`weight` [..., d_in] as it is in `precision`, in its own dtype: rows of blocks for the quantised formats."""
    if precision in DTYPES:
        return weight.to(DTYPES[precision]).to(weight.dtype)
    if weight.shape[-1] % BLOCK:
        return rounded(weight, "float16")
    blocks = weight.float().reshape(-1, BLOCK)
    return _dequantised(blocks, precision).view(weight.shape).to(weight.dtype)


def served_as(base: Base, precision: str) -> Base:
    """A copy of the base whose weights are those that it has in `precision`; the base itself if nothing changes.

    It keeps the fingerprint: an adapter that is trained on it belongs to the base. Caches tell the two apart by
    `Base.held_in`. Raises ModelError for an unknown precision, a base whose weights are rounded or packed already, and
    one whose quantised form is not known.
    """
    if precision not in MARGINS:
        raise ModelError(
            f"{precision!r} is not a precision that weights can be rounded to. {suggest(precision, MARGINS)}Known: "
            f"{', '.join(MARGINS)}."
        )
    if precision == base.judged_in:
        return base
    _check_precise(base, precision)
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for weight, by_row in _weights(model, base.name, precision):
            weight.copy_(rounded(by_row, precision) if by_row is weight else rounded(by_row, precision).mT)
    return replace(base, model=model, served_as=precision)


def _check_precise(base: Base, precision: str) -> None:
    """Raise ModelError unless the weights of the base are still there to be rounded."""
    if base.served_as is None and base.dtype in ("float32", "float64") and not getattr(base.model, "is_quantized", 0):
        return
    held = f"served as {base.served_as}" if base.served_as else "packed" if base.dtype == "float32" else base.dtype
    raise ModelError(
        f"The weights of {base.name} are {held} already, and rounding them again to {precision} would give weights "
        "that no server has. Load the original weights with --dtype float32."
    )


def _weights(model: nn.Module, name: str, precision: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Each weight to round, and the same with its rows along the input, which share the memory."""
    if precision not in QUANTISED:
        yield from ((weight, weight) for weight in model.parameters())
        return
    seen = set()
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            _refuse_fused(module, path, name, precision)
        elif last not in (*_POSITIONS, *_ROUTERS) and id(module.weight) not in seen:  # a tied head has no second weight
            seen.add(id(module.weight))
            weight: Any = module.weight
            yield weight, weight.mT if isinstance(module, Conv1D) else weight


def _refuse_fused(module: nn.Module, path: str, name: str, precision: str) -> None:
    fused = next((key for key, value in module.named_parameters(recurse=False) if value.dim() > 2), None)
    if fused is not None:
        raise ModelError(
            f"{name} keeps all experts of a layer in one tensor ({path}.{fused}), and memlaw does not know in which "
            f"order a {precision} file stores them. Convert the model and train on the file itself: --model FILE.gguf."
        )


def _dequantised(blocks: Tensor, precision: str) -> Tensor:
    """[n, BLOCK] float32 -> what is read back from the format, float32."""
    if precision == "q8_0":
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        scaled = blocks * _inverse(scale)
        # Half away from zero, as C's roundf; torch rounds half to even.
        steps = scaled.sign() * (scaled.abs() + 0.5).floor()
        return steps * _in_float16(scale)
    levels = _LEVELS[precision]
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -levels
    steps = (blocks * _inverse(scale) + (levels + 0.5)).trunc().clamp(0, 2 * levels - 1)
    return (steps - levels) * _in_float16(scale)


def _inverse(scale: Tensor) -> Tensor:
    inverse = 1.0 / scale
    return inverse.where(inverse.isfinite(), 0.0)  # a scale that small is 0 in float16, and so is its block


def _in_float16(scale: Tensor) -> Tensor:
    return scale.to(torch.float16).float()
