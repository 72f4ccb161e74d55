"""The frozen head by its definition: all logits at once, autograd through `F.cross_entropy`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.model.head import FrozenHead


def logits(head: FrozenHead, hidden: Tensor) -> Tensor:
    """[n, vocab]: softcap * tanh(z / softcap) with z = scale * (hidden @ weight.T + bias), in float32 at least."""
    z = hidden @ head.weight.T
    z = head.scale * (z if head.bias is None else z + head.bias)
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def head_pass(head: FrozenHead, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """nll [n], hit [n] and the gradient [n, d] of sum_t weights_t * nll_t in the hidden states."""
    states = hidden.detach().clone().requires_grad_(True)
    scores = logits(head, states)
    nll = F.cross_entropy(scores, targets, reduction="none")
    (gradient,) = torch.autograd.grad((weights * nll).sum(), states)
    return nll.detach(), scores.argmax(-1) == targets, gradient


def double(head: FrozenHead) -> FrozenHead:
    """The same head in float64, to judge rounding by."""
    bias = None if head.bias is None else head.bias.double()
    return FrozenHead(head.weight.double(), bias=bias, softcap=head.softcap, scale=head.scale)
