"""The MemFT loss of an optimizer step that a trainer takes in parts: micro-batches in turn, processes side by side.

The step's loss divides by the weights of all its tokens, and those of a micro-batch are known once it has run. So the
gradient is kept normalised by what has been seen so far: with W_k the sum of weights after k micro-batches, each
micro-batch first multiplies the gradients that lie in `.grad` by W_(k-1) / W_k and then adds its own share over W_k.
After every micro-batch, the last of an epoch among them, the gradients are those of all tokens so far as one batch.

So nothing has to happen at the end of a step, where trainers differ (`max_grad_norm=0` clips nothing, a callback comes
after clipping, a GradScaler divides before it), and no gradient is ever larger than a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from torch import Tensor

from memlaw.core.config import Rule
from memlaw.core.errors import ConfigError
from memlaw.losses import EPS, MemFTSums

REENTRANT = "CheckpointFunctionBackward"
"""The autograd node of reentrant checkpointing, which hides the weights behind it."""

OUT_OF_REACH = {DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM, DistributedType.XLA}
"""Engines that keep the gradients of an unfinished step where nobody else can rescale them."""


@dataclass(frozen=True)
class _Totals:
    """The four numbers of `MemFTSums`, over all processes and the micro-batches so far."""

    weighted: float = 0.0
    weight: float = 0.0
    plain: float = 0.0
    tokens: float = 0.0

    @classmethod
    def of(cls, part: MemFTSums) -> _Totals:
        values = torch.stack([part.weighted, part.weight, part.plain, part.tokens.to(part.weight)]).detach()
        if processes() > 1:
            dist.all_reduce(values)
        return cls(*values.tolist())

    def __add__(self, other: _Totals) -> _Totals:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Totals(*(mine + theirs for mine, theirs in pairs))

    def falls_back(self, rule: Rule) -> bool:
        return rule == "fallback" and not self.weight

    def divisor(self, rule: Rule) -> float:
        return EPS + (self.tokens if self.falls_back(rule) else self.weight)

    def mean(self, rule: Rule) -> float:
        return (self.plain if self.falls_back(rule) else self.weighted) / self.divisor(rule)


class StepMean:
    """Turns the parts of each step into losses whose gradients add up to that of the whole step's mean."""

    def __init__(self, rule: Rule) -> None:
        self.rule: Rule = rule
        self.so_far = _Totals()
        """Of the running step."""
        self._ended = True

    def add(self, part: MemFTSums) -> Tensor:
        """The loss of one micro-batch, for the trainer to call backward on, where processes average their gradients.

        The values of a step's micro-batches add up to the mean over the step: each is by how much it moves the mean.
        Where gradients lie in `.grad` already they are rescaled, so every loss must be followed by its backward.
        Raises ConfigError where they cannot be reached.
        """
        last = accelerator() is not None and GradientState().sync_gradients
        leaves = [] if last and self._ended else list(gradient_leaves(part.weighted))
        before = _Totals() if self._ended or _untouched(leaves) else self.so_far
        now = before + _Totals.of(part)
        self._rescale(leaves, before, now)
        self.so_far, self._ended = now, last
        chosen = part.plain if now.falls_back(self.rule) else part.weighted
        share = chosen * (processes() / now.divisor(self.rule))
        moved = now.mean(self.rule) - before.mean(self.rule)
        return share + (moved - share).detach()

    def _rescale(self, leaves: list[Tensor], before: _Totals, now: _Totals) -> None:
        if before == _Totals():
            return
        # The first weight of a step that had none ends its fallback, in which the earlier parts then have no share.
        same = before.falls_back(self.rule) == now.falls_back(self.rule)
        factor = before.divisor(self.rule) / now.divisor(self.rule) if same else 0.0
        for leaf in leaves:
            if leaf.grad is not None:
                leaf.grad.mul_(factor)


def gradient_leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors in whose `.grad` a backward of `loss` accumulates. Raises ConfigError where they are out of reach."""
    _check_engine()
    todo = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node.name() == REENTRANT:
            raise ConfigError(
                "Reentrant gradient checkpointing hides from MemFT the weights whose gradients a later micro-batch has "
                "to rescale: pass gradient_checkpointing_kwargs={'use_reentrant': False}, or do without gradient "
                "accumulation."
            )
        if hasattr(node, "variable"):
            yield node.variable
        inputs = {source for source, _ in node.next_functions if source is not None} - seen
        seen |= inputs
        todo += inputs


def accelerator() -> AcceleratorState | None:
    """What accelerate knows of this run; None in a loop that does without it."""
    return AcceleratorState() if AcceleratorState._shared_state else None


def _untouched(leaves: list[Tensor]) -> bool:
    """Whether no gradient was accumulated yet.

    So begins a step in a loop without accelerate, and so begins the first step after one that was interrupted: its sums
    are still there, its gradients are gone.
    """
    if accelerator() is not None:
        return all(leaf.grad is None for leaf in leaves)
    return all(leaf.grad is None or not leaf.grad.any() for leaf in leaves)


def _check_engine() -> None:
    state = accelerator()
    if state is not None and state.distributed_type in OUT_OF_REACH:
        raise ConfigError(
            f"{state.distributed_type.value} keeps the gradients of an unfinished step to itself, so MemFT would not "
            "be exact with gradient accumulation: set gradient_accumulation_steps=1 and raise "
            "per_device_train_batch_size."
        )


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
