"""The softmax part of the frozen head as two Triton kernels: from a chunk of logits to losses, and to their gradient.

The logits are read once for losses and hits, and the active rows once more for the gradient; the gradient is the only
thing of their size that is written. Computed in float32, in float64 for float64 logits. Under Triton's interpreter
(TRITON_INTERPRET=1 when this module loads) the kernels run on the CPU as well; most tests use that.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 4096
"""Logits of one row that a program of `chunk_losses` reads at a time."""

TILE = (16, 512)
"""Rows and columns that a program of `chunk_gradient` computes at a time."""

LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}
"""Fused multiply-adds are the default up to Triton 3.9; stated here so that a later version cannot change results."""


class ChunkLosses(NamedTuple):
    """Losses of m rows: [m] each, in float32 at least; log softmax = (score - peak) - log_total."""

    nll: Tensor
    """In nats."""
    hit: Tensor
    """bool: the target is the argmax, where the first of equal scores wins; False in a row with a NaN."""
    peak: Tensor
    """The largest score."""
    log_total: Tensor
    """log sum_j exp(score_j - peak), 0 or more."""


def chunk_losses(scores: Tensor, targets: Tensor) -> ChunkLosses:
    """nll = -log_softmax(scores)[target] of every row, and what `chunk_gradient` needs; reads `scores` once.

    `scores` [m, vocab] are floating-point logits of any strides, `targets` [m] long. Maximum and sum are computed in
    one sweep, as in Milakov and Gimelshein, arXiv 1805.02867.
    """
    rows, vocabulary = scores.shape
    nll, peak, log_total = (scores.new_empty(rows, dtype=_working(scores)) for _ in range(3))
    hit = scores.new_empty(rows, dtype=torch.bool)
    block = min(COLUMNS, triton.next_power_of_2(vocabulary))
    with _current(scores):
        _losses[(rows,)](
            scores, *scores.stride(), targets, nll, hit, peak, log_total, vocabulary, BLOCK=block, **LAUNCH
        )  # fmt: skip
    return ChunkLosses(nll, hit, peak, log_total)


def chunk_gradient(
    scores: Tensor,
    targets: Tensor,
    active: Tensor,
    weights: Tensor,
    losses: ChunkLosses,
    *,
    softcap: float | None,
    scale: float,
    out: Tensor,
) -> None:
    """Gradient of `sum_t weights_t * nll_t` with respect to the logits before scale and softcap, of the rows `active`.

    out[i] = weights_t * scale * (softmax(scores_t) - onehot(targets_t)) * (1 - (scores_t / softcap)^2), t = active[i]

    `scores` and `targets` are those of `chunk_losses` and `losses` its result; `weights` [m], `active` [a] long and
    increasing. `out` [a, vocab] may have another dtype. It may overlap `scores` if both have the same strides and row i
    of `out` is no later in memory than row active[i] of `scores`: rows only move forward, so an active row is read
    before it is overwritten. A row with a NaN nll becomes NaN whatever its weight.
    """
    vocabulary = scores.shape[1]
    # p - 1 of the target: expm1 does not cancel as p nears 1, which is where training ends.
    own = torch.expm1(-losses.nll)
    with _current(scores):
        _gradient[(triton.cdiv(vocabulary, TILE[1]),)](
            scores, *scores.stride(), out, *out.stride(), active, len(active), targets, scale * weights, own,
            losses.peak, losses.log_total, vocabulary, SOFTCAP=softcap, ROWS=TILE[0], COLUMNS=TILE[1], **LAUNCH,
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _losses(
    scores: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    targets: tl.tensor,
    nll: tl.tensor,
    hit: tl.tensor,
    peaks: tl.tensor,
    log_totals: tl.tensor,
    vocabulary: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program for each row."""
    row = tl.program_id(0)
    scores += row.to(tl.int64) * row_stride
    target = tl.load(targets + row)
    own = tl.load(scores + target * column_stride).to(nll.dtype.element_ty)
    peak = own
    total = tl.zeros([BLOCK], nll.dtype.element_ty)
    beaten = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < vocabulary
        score = tl.load(scores + column * column_stride, mask=inside, other=-float("inf")).to(nll.dtype.element_ty)
        higher = tl.maximum(peak, tl.max(score, 0))
        level = tl.where(higher == -float("inf"), 0.0, higher)  # exp(-inf - -inf) would be NaN
        total = total * tl.exp(peak - level) + tl.exp(score - level)
        peak = higher
        behind = (score < own) | ((score == own) & (column >= target))
        beaten = tl.where(behind | (column >= vocabulary), beaten, 1)
    log_total = tl.log(tl.sum(total, 0))
    tl.store(nll + row, log_total - (own - peak))
    tl.store(hit + row, tl.max(beaten, 0) == 0)
    tl.store(peaks + row, peak)
    tl.store(log_totals + row, log_total)


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _gradient(
    scores: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    out: tl.tensor,
    out_row_stride: tl.tensor,
    out_column_stride: tl.tensor,
    active: tl.tensor,
    count: tl.tensor,
    targets: tl.tensor,
    factors: tl.tensor,
    owns: tl.tensor,
    peaks: tl.tensor,
    log_totals: tl.tensor,
    vocabulary: tl.tensor,
    SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One program for some columns of all active rows, tile by tile in their order.

    Columns are independent, so no program reads what another one writes, although `out` may overlap `scores`.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    for start in range(0, count, ROWS):
        place = start + tl.arange(0, ROWS)[:, None]
        present = place < count
        inside = present & (column < vocabulary)
        row = tl.load(active + place, mask=present, other=0)
        score = tl.load(scores + row * row_stride + column * column_stride, mask=inside, other=0.0)
        score = score.to(peaks.dtype.element_ty)
        share = tl.exp((score - tl.load(peaks + row)) - tl.load(log_totals + row))
        pull = tl.where(column == tl.load(targets + row), tl.load(owns + row), share) * tl.load(factors + row)
        if SOFTCAP is not None:
            pull *= 1 - (score / SOFTCAP) * (score / SOFTCAP)
        tl.debug_barrier()  # read the whole tile before overwriting any of it
        tl.store(out + place.to(tl.int64) * out_row_stride + column * out_column_stride, pull, mask=inside)


def fault(device: torch.device, dtype: torch.dtype) -> str:
    """How the kernels' result on a small chunk differs from that of torch, in words; empty if it does not."""
    stream = torch.Generator().manual_seed(0)
    scores = (4 * torch.randn(24, 1000, generator=stream)).to(device, dtype)
    targets = torch.arange(24, device=device)
    weights = torch.linspace(0, 2, 24, device=device, dtype=_working(scores))
    active = torch.arange(1, 24, device=device)
    log_p = scores.log_softmax(-1, dtype=_working(scores))
    wanted = weights[:, None] * (log_p.exp() - torch.nn.functional.one_hot(targets, 1000))
    losses = chunk_losses(scores, targets)
    hits = bool((losses.hit == (scores.argmax(1) == targets)).all())
    nll = torch.allclose(losses.nll, -log_p.gather(1, targets[:, None])[:, 0], rtol=1e-4, atol=1e-4)
    chunk_gradient(scores, targets, active, weights, losses, softcap=None, scale=1.0, out=scores[: len(active)])
    gradient = torch.allclose(scores[: len(active)].to(wanted.dtype), wanted[active], rtol=2e-2, atol=1e-4)
    wrong = [name for name, right in (("losses", nll), ("hits", hits), ("gradient", gradient)) if not right]
    return f"wrong {', '.join(wrong)}" if wrong else ""


def _current(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, wherever its arguments are, so make theirs the current one."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _working(scores: Tensor) -> torch.dtype:
    return torch.promote_types(scores.dtype, torch.float32)
