"""What every optimizer of a stack has: moments like the tensors, which can be cut, saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor


class StackedOptimizer(ABC):
    """Updates tensors [K, ...] in place, with a learning rate and a weight decay for each of the K.

    The tensors are those of an `AdapterStack`: A [K, d_in, r_max] and B [K, r_max, d_out] of each site in turn.
    """

    MOMENTS: ClassVar[tuple[str, ...]]
    """Names of the averages it keeps, each with one tensor for every tensor it updates."""

    def __init__(self, tensors: Sequence[Tensor], ranks: Sequence[int], momenta: Sequence[float]) -> None:
        """`ranks` [K] of the adapters: beyond its own rank, an adapter's part of a tensor is zero. `momenta` [K] are
        those of `TrainConfig`, for optimizers that let users choose."""
        self.updates = 0
        self.ranks, self.momenta = tuple(ranks), tuple(momenta)
        self.moments = {
            name: [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors] for name in self.MOMENTS
        }

    @torch.no_grad()
    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor, decays: Tensor) -> None:
        """In place: p -= rate * (decay * p + direction); `rates` and `decays` are [K]."""
        self.updates += 1
        decaying = bool(decays.any())
        for place, (tensor, gradient) in enumerate(zip(tensors, gradients, strict=True)):
            rate = rates.to(tensor.dtype).view(-1, 1, 1)
            if decaying:
                tensor.mul_(1 - rate * decays.to(tensor.dtype).view(-1, 1, 1))
            tensor.sub_(rate * self._direction(place, gradient))

    @abstractmethod
    def _direction(self, place: int, gradient: Tensor) -> Tensor:
        """The direction of the tensor at `place`, from its gradient and the moments, which it updates."""

    def select(self, keep: Sequence[int], like: Sequence[Tensor]) -> Self:
        """The optimizer of the adapters `keep`, its moments cut to the shapes of the tensors `like`."""
        chosen = type(self)(like, [self.ranks[k] for k in keep], [self.momenta[k] for k in keep])
        chosen.load(self.updates, {name: cut(moments, keep, like) for name, moments in self.moments.items()})
        return chosen

    def load(self, updates: int, moments: Mapping[str, Sequence[Tensor]]) -> None:
        """Continue after `updates` updates with these moments, by name and in the order of the tensors."""
        self.updates = updates
        self.moments = {name: list(moments[name]) for name in self.MOMENTS}


def cut(tensors: Sequence[Tensor], keep: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the parts that belong to the adapters `keep`, in the shapes of `like`: the largest rank may shrink."""
    index = list(keep)
    shaped = zip(tensors, like, strict=True)
    return [tensor[index][:, : one.shape[1], : one.shape[2]].clone() for tensor, one in shaped]
