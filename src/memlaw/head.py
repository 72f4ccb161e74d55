"""The frozen LM head: from final hidden states to the loss and the top-1 hit of each target token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.errors import ModelError
from memlaw.reach import FrozenHead, frozen_head


def logits(head: FrozenHead, hidden: Tensor) -> Tensor:
    """Logits [n, vocab], in float32, of hidden states [n, d] that already passed the final norm."""
    bias = None if head.bias is None else head.bias.to(hidden.dtype)
    raw = F.linear(hidden, head.weight.detach(), bias) * head.scale
    raw = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw
    return raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap)


def token_scores(head: FrozenHead, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token nll [n] in nats (differentiable in `hidden`) and top-1 hit [n] bool.

    `hidden` [n, d] are final states at the positions that predict `targets` [n]; nll = -log softmax(logits)[target].
    """
    scores = logits(head, hidden)
    return F.cross_entropy(scores, targets, reduction="none"), scores.detach().argmax(-1) == targets


@torch.no_grad()
def proven_head(model: torch.nn.Module, hidden: Tensor, expected: Tensor) -> FrozenHead:
    """The model's head, shown to give the model's own logits. Raises ModelError where it does not.

    `hidden` [n, d] are the model's final states and `expected` [n, vocab] its logits there. A head with an unknown
    twist would make every loss and every certificate wrong, so nothing is trained on a head that is not proven.
    """
    head = frozen_head(model)
    found = logits(head, hidden)
    worst = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not worst <= 16 * torch.finfo(hidden.dtype).eps:
        raise ModelError(
            f"{type(model).__name__} turns hidden states into logits in a way memlaw does not know: relative difference "
            f"{worst:.1e} between its logits and weight, bias, scale and soft-cap applied by hand."
        )
    return head
