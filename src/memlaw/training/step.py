"""One optimizer step of a stack: the rows it sees, in parts that fit in memory, and the sums over these parts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.core.config import TrainConfig
from memlaw.core.recall import LN2
from memlaw.losses import WindowPass
from memlaw.losses.head_pass import HeadPass
from memlaw.training.optimizers.base import cut
from memlaw.training.rows import Batch, row_order
from memlaw.training.state import State

_DROPOUT_STREAM = 2_000_003


@dataclass(frozen=True, eq=False)
class Step:
    """Gradients and losses of one step, before anything changes."""

    gradients: list[Tensor]
    """Of each adapter's own loss in its own tensors, each [K, ...]."""
    loss: Tensor
    """[K], mean nll of the step's tokens to recall in nats; 0 if it has none."""
    ordered: Tensor
    """[K], how many of them have p > 1/2."""
    tokens: Tensor
    """[K], how many tokens to recall the step has."""
    forwarded: Tensor
    """[K] on the CPU, how many tokens went through the model for them, prompts included."""
    latest: Tensor
    """[K, rows, tokens]: `State.latest` with the losses of this step, if an adapter's settings follow them."""
    windows: list[WindowPass]
    """Of the sliding windows, to be committed once the step is taken."""

    @property
    def norms(self) -> Tensor:
        """[K], of each adapter's whole gradient."""
        norms: Tensor = torch.stack([g.flatten(1).norm(dim=1) for g in self.gradients]).norm(dim=0)
        return norms

    def select(self, keep: Sequence[int], like: Sequence[Tensor]) -> Step:
        """The step of the adapters at the places `keep`, its gradients in the shapes of `like`."""
        index = list(keep)
        return Step(
            gradients=cut(self.gradients, keep, like),
            loss=self.loss[index],
            ordered=self.ordered[index],
            tokens=self.tokens[index],
            forwarded=self.forwarded[index],
            latest=self.latest[index],
            windows=self.windows,
        )


@dataclass(frozen=True, eq=False)
class Part:
    """Some of each adapter's rows of a step."""

    batch: Batch
    start: int
    """Place of the first of them in the step."""
    step_rows: int
    """Rows of one adapter in the whole step, on one base."""
    place: int = 0
    """The base that they go through."""

    @property
    def rows(self) -> int:
        return self.batch.rows.shape[1]


@dataclass(eq=False)
class StepSums:
    """Sums over the parts of a step; all [K] but the gradients."""

    gradients: list[Tensor]
    weight: Tensor
    """Of all tokens, those to forget counted as positive."""
    nll: Tensor
    """Of the tokens to recall, as are the next two."""
    ordered: Tensor
    tokens: Tensor
    parts: list[tuple[Batch, Tensor]]
    """The nll [n] of each part."""

    @classmethod
    def zero(cls, tensors: Sequence[Tensor]) -> StepSums:
        nothing = tensors[0].new_zeros(len(tensors[0]), requires_grad=False)
        gradients = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]
        return cls(gradients, nothing, nothing, nothing, nothing, [])

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        first = not self.parts
        self.gradients = list(gradients) if first else [a + b for a, b in zip(self.gradients, gradients, strict=True)]

    def add_losses(self, batch: Batch, scored: HeadPass) -> None:
        ordered = (scored.nll < LN2) & batch.wanted
        self.weight = self.weight + batch.summed(scored.weights.abs())
        self.nll = self.nll + batch.summed(torch.where(batch.wanted, scored.nll, 0.0))
        self.ordered = self.ordered + batch.summed(ordered.to(scored.nll.dtype))
        self.tokens = self.tokens + batch.summed(batch.wanted.to(scored.nll.dtype))
        self.parts.append((batch, scored.nll))


class RowOrder:
    """The rows of one run's steps."""

    def __init__(self, count: int, config: TrainConfig) -> None:
        self._remaining = row_order(count, config)
        self._step = -1

    def rows_of(self, step: int) -> Tensor:
        """Rows [b] of `step`, which must not fall. A resumed run draws the rows of earlier steps again."""
        for _ in range(step - self._step):
            self._rows = next(self._remaining)
        self._step = step
        return self._rows


def dropout_mask(state: State, part: Part) -> Callable[..., Tensor]:
    """Dropout for one part of a step.

    The mask is a function of the adapter's seed, the step, the site and the row's place in the step, so it is the same
    whatever the adapter is stacked with, however the step is cut into parts, and after an interruption.
    """

    def drop(x: Tensor, /, path: str) -> Tensor:
        time = x.shape[1] // part.rows
        kept = []
        for k, config in enumerate(state.configs):
            name = f"{config.seed}/{state.step}/{path}"
            stream = torch.Generator(x.device).manual_seed(zlib.crc32(name.encode()) + _DROPOUT_STREAM)
            draw = torch.rand(part.step_rows, time, x.shape[2], generator=stream, device=x.device)
            mask = draw[part.start : part.start + part.rows].flatten(0, 1) >= config.dropout
            kept.append(x[k] * mask / (1 - config.dropout))
        return torch.stack(kept)

    return drop


def with_losses(latest: Tensor, parts: Sequence[tuple[Batch, Tensor]]) -> Tensor:
    """`latest` [K, rows, tokens] with the nll of the parts of a step in their places."""
    latest = latest.clone()
    adapters = torch.arange(len(latest), device=latest.device)[:, None]
    for batch, nll in parts:
        latest[adapters, batch.rows] = batch.padded(nll).to(latest.dtype)
    return latest
