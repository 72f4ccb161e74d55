"""Products with frozen weights, which make up most of the cost of a step, on the faster of two CPU libraries.

On the CPU, PyTorch multiplies float32 matrices with MKL, which reserves its widest instructions for Intel processors.
oneDNN, in the same wheel, does not: it is 2.4 times as fast on an AMD EPYC of 2024 (docs/log.md). PyTorch uses it only
for Linear layers compiled for inference; here it serves training, since a frozen weight needs one product in the
forward pass and one in the backward pass, both of this form. Both libraries sum in float32, in a different order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FEW_ROWS = 32
"""Rows below which starting oneDNN costs more than it saves."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., k] @ weight [n, k].T + bias [n] -> [..., n], without gradients; `weight` may be a transposed view."""
    if _fast(x, weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def product_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`product` of matrices, written to `out` [m, n]."""
    if _fast(x, weight):
        out.copy_(product(x, weight, bias))  # oneDNN has no `out`; the copy is cheap next to the product
    elif bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias, x, weight.T, out=out)


@contextmanager
def use_onednn(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, every frozen linear module in `modules` computes with `product`, forward and backward."""
    changed: list[Any] = [
        module
        for root in modules
        for module in root.modules()
        if type(module) in (nn.Linear, Conv1D) and _supported(module.weight) and "forward" not in vars(module)
    ]
    for module in changed:
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        module.forward = _forward(weight, module.bias)
    try:
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _forward(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return _opaque(x, weight, bias)  # type: ignore[no-any-return]
        result: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result

    return forward


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return product(gradients[0], ctx.weight.T), None, None


def _supported(weight: Any) -> bool:
    return not weight.requires_grad and weight.dtype == torch.float32 and weight.is_cpu and _has_onednn()


def _fast(x: Tensor, weight: Tensor) -> bool:
    many_rows = x.shape[-1] * FEW_ROWS <= x.numel()
    return many_rows and x.dtype == torch.float32 and x.is_cpu and _supported(weight.detach())


@cache
def _has_onednn() -> bool:
    """Whether this build of PyTorch has oneDNN's product, and its result is right."""
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4).T
    try:
        result = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.equal(result, x @ weight.T))


# Under torch.compile `_forward` calls this operator, which the compiler does not look into.
@torch.library.custom_op("memlaw::product", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x, weight, bias).contiguous()


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _keep_weight(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    del output
    ctx.save_for_backward(inputs[1])


def _opaque_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    (weight,) = ctx.saved_tensors
    return _opaque(gradient, weight.T, None), None, None


_opaque.register_autograd(_opaque_backward, setup_context=_keep_weight)
