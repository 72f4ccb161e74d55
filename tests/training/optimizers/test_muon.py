"""Muon of a stack, beside torch.optim.Muon and the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memlaw.training.optimizers.base import cut
from memlaw.training.optimizers.muon import COEFFICIENTS, STEPS, StackedMuon, orthogonal

RATES, DECAYS = torch.tensor([1e-2, 1e-1, 0.0]), torch.tensor([0.0, 0.1, 0.5])
MOMENTA = [0.9, 0.0, 0.98]


def pairs(stream: torch.Generator, ranks: list[int]) -> list[Tensor]:
    """A and B of one site, wider than some ranks: what lies beyond a rank is zero."""
    widest = max(ranks)
    a = torch.randn(len(ranks), 12, widest, generator=stream, dtype=torch.float64)
    b = torch.randn(len(ranks), widest, 5, generator=stream, dtype=torch.float64)
    for k, rank in enumerate(ranks):
        a[k, :, rank:], b[k, rank:] = 0, 0
    return [a, b]


def alone(tensors: list[Tensor], k: int, rank: int) -> list[Tensor]:
    return [tensors[0][k, :, :rank].clone(), tensors[1][k, :rank].clone()]


def slow_orthogonal(x: Tensor) -> Tensor:
    """By singular values: p applied STEPS times to each, with p(s) = a s + b s^3 + c s^5 and sum of squares 1 first."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


def test_each_adapter_moves_as_by_the_definition_alone() -> None:
    stream, ranks = torch.Generator().manual_seed(0), [1, 4, 7]
    tensors = pairs(stream, ranks)
    singles = [alone(tensors, k, rank) for k, rank in enumerate(ranks)]
    momenta = [[torch.zeros_like(x) for x in single] for single in singles]
    ours = StackedMuon(tensors, ranks, MOMENTA)
    for _ in range(4):
        gradients = pairs(stream, ranks)
        ours.step(tensors, gradients, RATES, DECAYS)
        for k, rank in enumerate(ranks):
            for x, m, g in zip(singles[k], momenta[k], alone(gradients, k, rank), strict=True):
                m.mul_(MOMENTA[k]).add_(g)
                scale = max(1.0, x.shape[0] / x.shape[1]) ** 0.5
                x.mul_(1 - RATES[k] * DECAYS[k]).sub_(RATES[k] * scale * slow_orthogonal(g + MOMENTA[k] * m))
    for k, rank in enumerate(ranks):
        for found, wanted in zip(alone(tensors, k, rank), singles[k], strict=True):
            torch.testing.assert_close(found, wanted)
    assert not tensors[0][0, :, 1:].any()
    assert not tensors[1][0, 1:].any()


def test_it_is_torch_muon_up_to_the_bfloat16_of_torch() -> None:
    stream = torch.Generator().manual_seed(0)
    tensors = [tensor.float() for tensor in pairs(stream, [4])]
    copies = [tensor[0].clone().requires_grad_(True) for tensor in tensors]
    theirs = torch.optim.Muon(copies, lr=0.05, weight_decay=0.0, momentum=0.95)
    ours = StackedMuon(tensors, [4], [0.95])
    before = [tensor[0].clone() for tensor in tensors]
    for _ in range(3):
        gradients = [tensor.float() for tensor in pairs(stream, [4])]
        ours.step(tensors, gradients, torch.tensor([0.05]), torch.tensor([0.0]))
        for copy, gradient in zip(copies, gradients, strict=True):
            copy.grad = gradient[0]
        theirs.step()
    for tensor, copy, start in zip(tensors, copies, before, strict=True):
        moved = copy.detach() - start
        assert (tensor[0] - start - moved).norm() < 0.03 * moved.norm()


@pytest.mark.parametrize("shape", [(3, 40, 6), (3, 6, 40), (2, 5, 5), (1, 30, 1)])
def test_singular_values_become_alike(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonal(x))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_nothing_becomes_nothing() -> None:
    assert not orthogonal(torch.zeros(2, 5, 3)).any()


def test_the_adapters_that_stay_go_on_as_they_were() -> None:
    stream, ranks = torch.Generator().manual_seed(2), [2, 6]
    tensors, kept = pairs(stream, ranks), [1]
    whole = StackedMuon(tensors, ranks, MOMENTA[:2])
    whole.step(tensors, pairs(stream, ranks), RATES[:2], DECAYS[:2])
    some = cut(tensors, kept, [tensor[kept] for tensor in tensors])
    part = whole.select(kept, some)
    gradients = pairs(stream, ranks)
    whole.step(tensors, gradients, RATES[:2], DECAYS[:2])
    part.step(some, cut(gradients, kept, some), RATES[kept], DECAYS[kept])
    for found, wanted in zip(some, tensors, strict=True):
        torch.testing.assert_close(found, wanted[kept])
