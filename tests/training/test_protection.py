"""The predicted drift: its formula, its gradient, and how near it is to the KL divergence that it predicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import Execution, TrainConfig
from memlaw.losses.divergence import divergence
from memlaw.model.base import Base
from memlaw.model.head import frozen_head
from memlaw.model.outline import Site
from memlaw.model.parts import frozen
from memlaw.training.protection import Protection, SecondMoment, measured, own_text
from memlaw.training.protection import _affordable as affordable
from memlaw.training.suffix import Suffix

NEUTRAL = torch.randint(3, tiny.VOCABULARY, (24, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base(dtype=torch.float64)


def stack_of(base: Base, where: str, *, size: float, ranks: tuple[int, ...] = (2, 3)) -> AdapterStack:
    placement = placement_on(where, base.model)
    runs = [(rank, TrainConfig(seed=seed)) for seed, rank in enumerate(ranks)]
    stack = AdapterStack.start(placement.sites, runs, device="cpu", dtype="float64")
    stream = torch.Generator().manual_seed(1)
    for _, b in stack.pairs:
        for k, rank in enumerate(ranks):
            b[k, :rank] = size * torch.randn(rank, b.shape[2], generator=stream, dtype=torch.float64)
    return stack


def measured_on(base: Base, stack: AdapterStack) -> tuple[Protection, Suffix]:
    with frozen(base.model):
        suffix = Suffix.of_rows(base, stack.sites, NEUTRAL, Execution())
        return measured(suffix, frozen_head(base.model), base.model, stack.sites, NEUTRAL), suffix


def whole(moment: SecondMoment, width: int) -> Tensor:
    return moment.times(torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("where", ["down_proj@2", "q_proj,v_proj", "all-linear"])
def test_drift_and_gradient_are_those_of_the_trace(base: Base, where: str) -> None:
    stack = stack_of(base, where, size=0.1)
    protection, _ = measured_on(base, stack)
    total = torch.zeros(len(stack), dtype=torch.float64)
    tensors = [tensor.requires_grad_(True) for tensor in stack.tensors]
    for (a, b), site, curvature in zip(stack.pairs, stack.sites, protection.curvatures, strict=True):
        c, g = whole(curvature.inputs, site.d_in), whole(curvature.outputs, site.d_out)
        change = stack.scale * (a @ b)
        total = total + torch.einsum("ij,kjm,mn,kin->k", c, change, g, change) / 2
    torch.testing.assert_close(protection.drift(stack), total.detach())
    for found, wanted in zip(protection.gradients(stack), torch.autograd.grad(total.sum(), tensors), strict=True):
        torch.testing.assert_close(found, wanted)


def test_moments_are_those_of_the_inputs_and_of_the_gradients(base: Base) -> None:
    """By hooks on the whole model: C from the inputs at all tokens but a row's first and last; trace of G likewise."""
    stack = stack_of(base, "down_proj@2", size=0.0)
    protection, _ = measured_on(base, stack)
    module = base.model.get_submodule(stack.sites[0].path)
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach()))
    with torch.no_grad():
        base.model(NEUTRAL)
    handle.remove()
    x = seen[0][:, 1:-1].flatten(0, 1)
    site = stack.sites[0]
    torch.testing.assert_close(whole(protection.curvatures[0].inputs, site.d_in), x.T @ x / len(x))
    values = torch.linalg.eigvalsh(whole(protection.curvatures[0].outputs, site.d_out))
    assert values.min() > -1e-12
    assert values.max() > 1e-6


@pytest.mark.parametrize("size", [0.003, 0.01])
def test_a_small_adapter_drifts_about_as_predicted(base: Base, size: float) -> None:
    """K-FAC takes inputs and curvature as independent, so the prediction is right within a factor, not exact."""
    stack = stack_of(base, "down_proj@2", size=size)
    protection, suffix = measured_on(base, stack)
    head, rows = frozen_head(base.model), torch.arange(len(NEUTRAL))
    with frozen(base.model), torch.no_grad():
        before = suffix.hidden(rows)[:, 1:-1].flatten(0, 1)
        for k in range(len(stack)):
            with stack.select([k]).attached(base.model):
                after = suffix.hidden(rows)[:, 1:-1].flatten(0, 1)
            kl = float(divergence(head, after, before).kl.mean())
            assert 0.5 < float(protection.drift(stack)[k]) / kl < 2


def test_few_vectors_are_kept_as_they_are() -> None:
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    few, many = SecondMoment.of_none(8, 5), SecondMoment.of_none(8, 10)
    few.add(vectors[:2])
    few.add(vectors[2:])
    many.add(vectors)
    many.add(vectors)
    torch.testing.assert_close(whole(few, 8), vectors.T @ vectors / 5, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole(many, 8), vectors.T @ vectors / 5)


def test_many_wide_modules_are_measured_on_fewer_rows() -> None:
    narrow, wide = (Site("x", 0, width, width) for width in (64, 20_000))
    assert affordable([narrow], 128, 65) == 128
    assert affordable([wide], 128, 65) == 128
    assert affordable([wide] * 40, 128, 65) == 4
    assert affordable([wide] * 10_000, 128, 65) == 1


def test_a_base_writes_its_own_neutral_text(base: Base) -> None:
    ids = own_text(replace(base, context=20))
    assert ids.shape == (128, 20)
    torch.testing.assert_close(ids, own_text(replace(base, context=20)))
