"""Products with frozen weights: oneDNN agrees with plain PyTorch, forward and backward, compiled or not."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers import tiny
from memlaw.model import linear
from memlaw.model.linear import product, product_into, use_onednn


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def far(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@given(
    rows=st.integers(1, 80), inner=st.integers(1, 40), outer=st.integers(1, 40), bias=st.booleans(),
    transposed=st.booleans(), deep=st.booleans(),
)  # fmt: skip
def test_a_product_is_right_in_any_shape(
    rows: int, inner: int, outer: int, bias: bool, transposed: bool, deep: bool
) -> None:
    x = draw(2, rows, inner) if deep else draw(rows, inner)
    weight = draw(inner, outer, seed=1).T if transposed else draw(outer, inner, seed=1)
    offset = draw(outer, seed=2) if bias else None
    expected = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    # What rounding can do to a sum is relative to the size of its terms: they may cancel.
    terms = F.linear(x.double().abs(), weight.double().abs(), None if offset is None else offset.double().abs())
    assert float((product(x, weight, offset) - expected).div(terms).abs().max()) < 1e-6
    if not deep:
        out = torch.full((rows, outer), torch.nan)
        product_into(out, x, weight, offset)
        assert float((out - expected).div(terms).abs().max()) < 1e-6


def test_this_build_of_torch_has_the_fast_product() -> None:
    """Otherwise the rest of this file would compare PyTorch with itself."""
    assert linear._has_onednn()
    assert linear._fast(draw(64, 8), draw(8, 8))
    assert not linear._fast(draw(64, 8, dtype=torch.float64), draw(8, 8, dtype=torch.float64))
    assert not linear._fast(draw(linear.FEW_ROWS - 1, 8), draw(8, 8))


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
def test_a_fast_linear_has_the_values_and_gradients_of_a_plain_one(kind: str) -> None:
    module: nn.Module = Conv1D(5, 7) if kind == "conv1d" else nn.Linear(7, 5, bias=kind == "linear")
    module.requires_grad_(False)
    x, pull = draw(3, 40, 7), draw(3, 40, 5, seed=1)
    results = []
    for fast in (False, True):
        leaf = x.clone().requires_grad_(True)
        with use_onednn([module] if fast else []):
            assert ("forward" in vars(module)) == fast
            out = module(leaf)
            results.append((out.detach(), torch.autograd.grad(out, leaf, pull)[0]))
    assert "forward" not in vars(module)
    for plain, ours in zip(*results, strict=True):
        assert far(ours, plain.double()) < 1e-6


def test_modules_that_train_or_have_their_own_forward_stay_unchanged() -> None:
    class Own(nn.Linear):
        pass

    trains, own, shared = nn.Linear(4, 4), Own(4, 4).requires_grad_(False), nn.Linear(4, 4).requires_grad_(False)
    shared.forward = lambda x: x  # type: ignore[method-assign]
    with use_onednn([nn.ModuleList([trains, own, shared])]):
        assert "forward" not in vars(trains)
        assert "forward" not in vars(own)
        assert shared(3) == 3
    assert shared(3) == 3


def test_the_linears_are_as_before_after_an_error() -> None:
    model = tiny.model()
    model.requires_grad_(False)
    with suppress(KeyError), use_onednn([model]):
        assert "forward" in vars(model.lm_head)
        raise KeyError
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_operator_for_the_compiler_passes_opcheck() -> None:
    x, weight, bias = draw(40, 7).requires_grad_(True), draw(5, 7), draw(5)
    torch.library.opcheck(torch.ops.memlaw.product.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.memlaw.product.default, (x, draw(7, 5).T, None))
