"""AdamW for a stack of adapters, each with its own learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class StackedAdamW:
    """AdamW on tensors [K, ...] with a learning rate and decay for each of the K; otherwise `torch.optim.AdamW`."""

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.updates = 0
        self.first = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]
        self.second = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]

    @torch.no_grad()
    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor, decays: Tensor) -> None:
        """In place: p -= rate * (decay * p + m_hat / (sqrt(v_hat) + eps)); `rates` and `decays` are [K]."""
        self.updates += 1
        first_bias, second_bias = 1 - self.beta1**self.updates, 1 - self.beta2**self.updates
        decaying = bool(decays.any())
        for tensor, gradient, m, v in zip(tensors, gradients, self.first, self.second, strict=True):
            rate = rates.to(tensor.dtype).view(-1, 1, 1)
            if decaying:
                tensor.mul_(1 - rate * decays.to(tensor.dtype).view(-1, 1, 1))
            m.lerp_(gradient, 1 - self.beta1)
            v.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            scale = (v / second_bias).sqrt_().add_(self.eps)
            tensor.sub_(rate / first_bias * m / scale)

    def select(self, keep: Sequence[int], like: Sequence[Tensor]) -> StackedAdamW:
        """The optimizer of the adapters `keep`, its moments cut to the shapes of the tensors `like`."""
        chosen = StackedAdamW(like)
        chosen.updates = self.updates
        chosen.first, chosen.second = cut(self.first, keep, like), cut(self.second, keep, like)
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """The number of updates, and both moments in the order of the tensors."""
        return {"updates": self.updates, "first": list(self.first), "second": list(self.second)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.updates, self.first, self.second = state["updates"], list(state["first"]), list(state["second"])


def cut(tensors: Sequence[Tensor], keep: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the parts that belong to the adapters `keep`, in the shapes of `like`: the largest rank may shrink."""
    index = list(keep)
    shaped = zip(tensors, like, strict=True)
    return [tensor[index][:, : one.shape[1], : one.shape[2]].clone() for tensor, one in shaped]
