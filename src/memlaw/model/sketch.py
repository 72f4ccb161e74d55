"""Is this the same base in another precision? A few weights of every tensor, recorded before they were rounded, tell.

Quantising is a fixed computation on blocks of neighbours, so one block of each tensor can be quantised again and
compared exactly. Weights that were trained further, even a little, have other scales and other steps in some block:
what differs by more than a known rounding is another base. Formats that weigh their errors with data (an
importance matrix) or share scales over larger blocks (q4_K and its kin) are not known here: they are refused, not
guessed. A change of a small part of a step in one tensor alone may go unseen: one block of it need not move.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32
"""Neighbours in a row that share a scale in llama.cpp's simple formats."""

FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "bf16", "f16")
"""Roundings that are recognised, coarsest first."""

Values = NDArray[np.float32]


def sketch(weights: Mapping[str, Tensor]) -> str:
    """The first block of the middle row of every tensor, in the order of their names: some kilobytes of text.

    Values are kept in bfloat16 if that holds them all, and else in float32.
    """
    values = np.concatenate([block(weight) for _, weight in sorted(weights.items())])
    high = (values.view(np.uint32) >> 16).astype("<u2")
    exact = not (values.view(np.uint32) & 0xFFFF).any()
    return ("b" if exact else "f") + base64.b64encode((high if exact else values.astype("<f4")).tobytes()).decode()


def block(weight: Tensor) -> Values:
    """Up to BLOCK neighbours of a tensor, in float32."""
    rows = weight.detach()
    while rows.dim() > 1:
        rows = rows[len(rows) // 2]
    values: Values = rows[:BLOCK].to(torch.float32).cpu().numpy()
    return values


def rounded_to(weights: Mapping[str, Tensor], recorded: str) -> tuple[str, ...] | None:
    """The formats to which `weights` were rounded, coarsest first, if they were those of `recorded`; else None.

    None too where the package `gguf`, which knows the formats, is not installed.
    """
    found = set()
    pairs = list(_pairs(weights, recorded))
    if not pairs:
        return None
    for before, now in pairs:
        kind = _format(before, now)
        if kind is None:
            return None
        found.add(kind)
    return tuple(kind for kind in FORMATS if kind in found) or ("f32",)


def _pairs(weights: Mapping[str, Tensor], recorded: str) -> Iterator[tuple[Values, Values]]:
    """The block of each tensor as recorded and as it is; nothing if they are not of the same size."""
    content = base64.b64decode(recorded[1:])
    if recorded[:1] == "b":
        before = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        before = np.frombuffer(content, "<f4").astype(np.float32)
    blocks = [block(weight) for _, weight in sorted(weights.items())]
    ends = np.cumsum([len(one) for one in blocks])
    if len(before) == ends[-1]:
        yield from zip(np.split(before, ends[:-1]), blocks, strict=True)


def _format(before: Values, now: Values) -> str | None:
    """The coarsest format in which `before` reads as `now`: "f32" for the same values, None for other weights."""
    if np.array_equal(before, now):
        return "f32"
    through_f16 = before.astype(np.float16).astype(np.float32)  # many quantised files are made from a float16 one
    for kind in FORMATS:
        read_back = [_read_back(source, kind) for source in (before, through_f16)]
        if any(back is not None and np.array_equal(back, now) for back in read_back):
            return kind
    return None


def _read_back(values: Values, kind: str) -> Values | None:
    """`values` written in a format and read again; None where that takes whole blocks, or `gguf` is missing."""
    try:
        import gguf
    except ImportError:
        return None
    if kind.startswith("q") and len(values) != BLOCK:
        return None
    chosen = gguf.GGMLQuantizationType[kind.upper()]
    back: Values = gguf.quants.dequantize(gguf.quants.quantize(values[None], chosen), chosen)[0]
    return back
