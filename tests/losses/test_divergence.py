"""KL(base || adapted) and its gradient, beside autograd on the logits of the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers import slow_head as reference
from losses.test_head_pass import KINDS, SMALL, case
from memlaw.losses.divergence import divergence, drawn_gradient
from memlaw.losses.head_pass import Chunk
from memlaw.model.head import FrozenHead


def slow(head: FrozenHead, hidden: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """By definition, with autograd."""
    states = hidden.clone().requires_grad_(True)
    log_q = reference.logits(head, states).log_softmax(-1)
    log_p = reference.logits(head, base).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    (gradient,) = torch.autograd.grad(kl.sum(), states)
    return kl.detach(), gradient


@pytest.mark.parametrize("chunk", [SMALL, None])
@pytest.mark.parametrize("kind", KINDS)
def test_kl_and_gradient_are_those_of_the_definition(kind: str, chunk: Chunk | None) -> None:
    head, base, _ = case(kind=kind)
    hidden = base + 0.3 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1), dtype=base.dtype)
    kl, gradient = slow(head, hidden, base)
    found = divergence(head, hidden, base, chunk=chunk)
    torch.testing.assert_close(found.kl, kl)
    torch.testing.assert_close(found.gradient, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_states_diverge_by_nothing_at_all(kind: str) -> None:
    head, base, _ = case(kind=kind, dtype=torch.float32)
    found = divergence(head, base.clone(), base, chunk=SMALL)
    assert not found.kl.any()
    assert not found.gradient.any()


def test_half_precision_is_summed_in_float32() -> None:
    head, base, _ = case(dtype=torch.bfloat16)
    hidden = base + torch.full_like(base, 0.25)
    found = divergence(head, hidden, base, chunk=SMALL)
    assert found.kl.dtype == torch.float32
    assert found.gradient.dtype == torch.bfloat16
    kl, _ = slow(head, hidden, base)
    torch.testing.assert_close(found.kl, kl, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_gradients_have_the_second_moment_of_the_definition(kind: str) -> None:
    """E[g g'] = J' (diag(p) - p p') J with J = dlogits/dhidden: the Fisher information of one state."""
    head, states, _ = case(n=2, vocabulary=7, width=3, kind=kind)
    hidden, count = states[:1] / 3, 40_000
    logits = reference.logits(head, hidden)
    p = logits.softmax(-1)[0]
    jacobian = torch.autograd.functional.jacobian(lambda h: reference.logits(head, h)[0], hidden)[:, 0]
    wanted = jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    drawn = drawn_gradient(head, hidden.expand(count, -1), torch.Generator().manual_seed(0))
    error = (drawn.T @ drawn / count - wanted).norm() / wanted.norm()
    assert error < 0.05
    assert drawn.mean(0).norm() < 0.05 * wanted.diagonal().sum().sqrt()
