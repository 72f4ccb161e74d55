"""Both Triton kernels of the head against float64, values and gradients; then the pass that uses them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpu.environment import seconds_each
from gpu.section import Section
from memlaw.losses.head_pass import head_pass
from memlaw.losses.kernels import usable
from memlaw.losses.kernels.softmax import chunk_gradient, chunk_losses
from memlaw.model.head import FrozenHead

SHAPES = ((1, 7, None), (33, 50_257, 30.0), (200, 128_256, None), (256, 151_936, None))
SMALL = ((3, 7, None), (5, 4100, 30.0))
"""Rows, vocabulary, soft-cap."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

STORED = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Largest relative error of a gradient that is stored in a dtype: a few units in its last place."""


def errors(
    section: Section, rows: int, vocabulary: int, softcap: float | None, dtype: torch.dtype
) -> Mapping[str, Any]:
    """Largest error of each result, as a share of the largest value wanted; of a gradient, row by row."""
    scores, targets, weights = chunk(section, rows, vocabulary, dtype)
    active = torch.arange(rows, device=section.device)[1 if rows > 1 else 0 :]
    scale = 0.5 if softcap else 1.0
    log_p = scores.double().log_softmax(1)
    wanted = log_p.exp()
    wanted[torch.arange(rows, device=section.device), targets] -= 1
    wanted *= scale * weights[:, None].double()
    if softcap:
        wanted *= 1 - (scores.double() / softcap) ** 2
    wanted = wanted[active]
    nll = -log_p.gather(1, targets[:, None])[:, 0]
    hits = first_argmax(scores) == targets
    losses = chunk_losses(scores, targets)
    apart = torch.full((len(active), vocabulary), 77.0, device=section.device, dtype=losses.nll.dtype)
    chunk_gradient(scores, targets, active, weights, losses, softcap=softcap, scale=scale, out=apart)
    in_place = scores[: len(active)]
    chunk_gradient(scores, targets, active, weights, losses, softcap=softcap, scale=scale, out=in_place)
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    found = {
        "nll": _relative(losses.nll, nll),
        "gradient": _relative(apart, wanted, by_row=True),
        "gradient_in_place": _relative(in_place, wanted, by_row=True),
        "hits_wrong": int((losses.hit != hits).sum()),
    }
    right = found["nll"] < exact and found["gradient"] < exact and found["gradient_in_place"] < STORED[dtype]
    return found | {"ok": right and not found["hits_wrong"]}


def chunk(section: Section, rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets of which about half are the argmax, and weights."""
    stream = torch.Generator().manual_seed(0)
    scores = (4 * torch.randn(rows, vocabulary, generator=stream)).to(section.device, dtype)
    guess = torch.randint(vocabulary, (rows,), generator=stream).to(section.device)
    half = torch.arange(rows, device=section.device) % 2 == 0
    weights = torch.linspace(0.1, 2, rows, device=section.device, dtype=torch.promote_types(dtype, torch.float32))
    return scores, torch.where(half, first_argmax(scores), guess), weights


def first_argmax(scores: Tensor) -> Tensor:
    """The first of equal largest scores, which `argmax` does not promise on a GPU."""
    places = torch.arange(scores.shape[1], device=scores.device)
    return places.where(scores == scores.amax(1, keepdim=True), scores.shape[1]).amin(1)


def _relative(found: Tensor, wanted: Tensor, *, by_row: bool = False) -> float:
    difference, size = (found.double() - wanted).abs(), wanted.abs()
    if by_row:
        return float((difference.amax(1) / size.amax(1)).max())
    return float(difference.max() / size.max())


def whole_pass(section: Section, dtype: torch.dtype) -> Mapping[str, Any]:
    """The pass through the head, all rows active and a tenth of them, against the same in float64.

    In half precision both sides have the same weights and states, so the difference is what logits stored in it cost.
    """
    rows, vocabulary, width = (40, 500, 16) if section.small else (3000, 50_000, 1024)
    stream = torch.Generator().manual_seed(1)
    weight = (torch.randn(vocabulary, width, generator=stream) * 3 / width**0.5).to(section.device, dtype)
    hidden = torch.randn(rows, width, generator=stream).to(section.device, dtype)
    targets = torch.randint(vocabulary, (rows,), generator=stream).to(section.device)
    found: dict[str, Any] = {}
    for share in (1.0, 0.1):
        weights = (torch.rand(rows, generator=stream) < share).to(section.device, torch.float32)
        scored = head_pass(FrozenHead(weight), hidden, targets, lambda _nll, _hit, part, w=weights: w[part])
        p = (hidden.double() @ weight.double().T).log_softmax(1)
        nll = -p.gather(1, targets[:, None])[:, 0]
        pull = p.exp_()
        pull[torch.arange(rows, device=section.device), targets] -= 1
        wanted = (pull * weights[:, None]) @ weight.double()
        found |= {
            f"nll_{share:g}": _relative(scored.nll, nll),
            f"gradient_{share:g}": float((scored.gradient.double() - wanted).norm() / wanted.norm()),
        }
    worst = max(found.values())
    return found | {"ok": worst < (2e-2 if dtype == torch.bfloat16 else 1e-4)}


def rates(section: Section) -> Mapping[str, Any]:
    """GB/s of the logits that each kernel reads and writes, for as many rows as the pass gives it at a time."""
    rows, vocabulary = (2, 100) if section.small else (441, 151_936)
    scores, targets, weights = chunk(section, rows, vocabulary, section.dtype)
    active, losses, out = torch.arange(rows, device=section.device), chunk_losses(scores, targets), scores.clone()

    def gradient() -> None:
        chunk_gradient(scores, targets, active, weights, losses, softcap=None, scale=1.0, out=out)

    works = {"losses": lambda: chunk_losses(scores, targets), "gradient": gradient}
    each = {name: seconds_each(work, section, for_seconds=0.2) for name, work in works.items()}
    return {
        "losses_gbs": scores.nbytes / each["losses"] / 1e9,
        "gradient_gbs": 2 * scores.nbytes / each["gradient"] / 1e9,
        **{f"{name}_us": 1e6 * seconds for name, seconds in each.items()},
    }


def kernels_are_used(device: str) -> Mapping[str, Any]:
    answers = {str(dtype).removeprefix("torch."): usable(torch.device(device), dtype) for dtype in DTYPES}
    return answers | {"ok": all(answers.values())}


def run(section: Section) -> None:
    for rows, vocabulary, softcap in SMALL if section.small else SHAPES:
        for dtype in DTYPES:
            name = f"{str(dtype).removeprefix('torch.')} {rows}x{vocabulary}{' capped' if softcap else ''}"
            section.case(name, partial(errors, section, rows, vocabulary, softcap, dtype))
    if section.device == "cuda":
        section.case("used", lambda: kernels_are_used(section.device))
    section.case("rates", lambda: rates(section))
    for dtype in (torch.float32, torch.bfloat16):
        section.case(f"pass {str(dtype).removeprefix('torch.')}", partial(whole_pass, section, dtype))
