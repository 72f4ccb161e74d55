"""The MemFT loss of an optimizer step that a trainer takes in parts: micro-batches in turn, processes in parallel.

The loss of a step is divided by the weights of all its tokens, but those of a micro-batch are known only once it has
run. So gradients are always normalised by the weights so far: with W_k the sum of weights after k micro-batches, each
micro-batch first multiplies the gradients in `.grad` by W_(k-1) / W_k, and then adds its own share over W_k. After
every micro-batch the gradients are those of all tokens so far as one batch, also if an epoch ends there.

So nothing needs to happen at the end of a step, where trainers differ (`max_grad_norm=0` does not clip, a callback
comes after clipping, a GradScaler divides before it), and no gradient is ever larger than a mean.
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
"""Engines that keep the gradients of an unfinished step where they cannot be rescaled."""


@dataclass(frozen=True)
class _Totals:
    """The four numbers of `MemFTSums`, summed over processes and the micro-batches so far."""

    weighted: float = 0.0
    weight: float = 0.0
    plain: float = 0.0
    tokens: float = 0.0

    @classmethod
    def over_processes(cls, part: MemFTSums) -> _Totals:
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
    """Turns the parts of each step into losses whose gradients add up to that of the mean over the whole step."""

    def __init__(self, rule: Rule) -> None:
        self.rule: Rule = rule
        self.so_far = _Totals()
        """Totals of the current step."""
        self._ended = True

    def add(self, part: MemFTSums) -> Tensor:
        """The loss of one micro-batch, to call backward on, for processes that average their gradients.

        The values of a step's micro-batches add up to the mean over the step: each is the change of the mean. Gradients
        already in `.grad` are rescaled, so every loss must be followed by its backward. Raises ConfigError if they
        cannot be reached.
        """
        last = accelerator() is not None and GradientState().sync_gradients
        leaves = [] if last and self._ended else list(gradient_leaves(part.weighted))
        before = _Totals() if self._ended or _untouched(leaves) else self.so_far
        now = before + _Totals.over_processes(part)
        self._rescale(leaves, before, now)
        self.so_far, self._ended = now, last
        chosen = part.plain if now.falls_back(self.rule) else part.weighted
        share = chosen * (processes() / now.divisor(self.rule))
        moved = now.mean(self.rule) - before.mean(self.rule)
        return share + (moved - share).detach()

    def _rescale(self, leaves: list[Tensor], before: _Totals, now: _Totals) -> None:
        if before == _Totals():
            return
        # The first part with weight ends the fallback of a step, and earlier parts have no share in its loss.
        same = before.falls_back(self.rule) == now.falls_back(self.rule)
        factor = before.divisor(self.rule) / now.divisor(self.rule) if same else 0.0
        for leaf in leaves:
            if leaf.grad is not None:
                leaf.grad.mul_(factor)


def gradient_leaves(loss: Tensor) -> Iterator[Tensor]:
    """The tensors in whose `.grad` a backward of `loss` accumulates. Raises ConfigError if they are out of reach."""
    _check_engine()
    todo = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node.name() == REENTRANT:
            raise ConfigError(
                "Reentrant gradient checkpointing hides the weights from MemFT, whose gradients later micro-batches "
                "must rescale: pass gradient_checkpointing_kwargs={'use_reentrant': False}, or turn gradient "
                "accumulation off."
            )
        if hasattr(node, "variable"):
            yield node.variable
        inputs = {source for source, _ in node.next_functions if source is not None} - seen
        seen |= inputs
        todo += inputs


def accelerator() -> AcceleratorState | None:
    """The state of accelerate; None in a loop without it."""
    return AcceleratorState() if AcceleratorState._shared_state else None


def _untouched(leaves: list[Tensor]) -> bool:
    """Whether no gradient has accumulated yet.

    That is the start of a step in a loop without accelerate, and of the first step after an interrupted one, whose
    totals are still here although its gradients are gone.
    """
    if accelerator() is not None:
        return all(leaf.grad is None for leaf in leaves)
    return all(leaf.grad is None or not leaf.grad.any() for leaf in leaves)


def _check_engine() -> None:
    state = accelerator()
    if state is not None and state.distributed_type in OUT_OF_REACH:
        raise ConfigError(
            f"{state.distributed_type.value} does not give access to the gradients of an unfinished step, so MemFT "
            "would be wrong with gradient accumulation: set gradient_accumulation_steps=1 and raise "
            "per_device_train_batch_size."
        )


def processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
