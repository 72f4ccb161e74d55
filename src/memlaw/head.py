"""The frozen LM head: from final hidden states to the loss and the top-1 hit of each target token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.reach import FrozenHead


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
