"""MemFT in `transformers.Trainer`: the loss, the recall of a memory set during training, curriculum and optimizer.

    trainer = Trainer(..., compute_loss_func=MemFTLoss("ot"))     # as an argument, or
    memft(trainer, "sw")                                          # on a trainer, also for packed samples and sw
    watch_recall(trainer, memory_set, every=50)
    use_curriculum(trainer, boundaries=(20, 40, 60, 80, 300))
    use_optimizer(trainer, "muon")                            # or memft(trainer, optimizer="muon")

A loss function gets only the outputs and labels of a micro-batch, yet the gradient is that of the whole optimizer step
(`integrations.step`). Which micro-batch is the last of a step it learns from accelerate's GradientState, which the
Trainer sets before each; where gradients accumulate, from the autograd graph of its own loss. So it needs neither a
reference to the trainer, nor a callback, nor a change of the training loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import GradientState
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from memlaw.core.config import Method
from memlaw.core.errors import ConfigError
from memlaw.integrations.curriculum import CurriculumSampler, use_curriculum
from memlaw.integrations.loss import StepLoss
from memlaw.integrations.optimizer import choose_optimizer, use_optimizer
from memlaw.integrations.recall import RecallCallback, watch_recall
from memlaw.integrations.refusals import UNAVERAGED, check_averaging, check_parallelism, check_trainer
from memlaw.integrations.samples import windows_from_json, windows_to_json
from memlaw.integrations.step import accelerator, processes
from memlaw.losses import MemFT, WindowState

__all__ = [
    "CurriculumSampler",
    "MemFTLoss",
    "RecallCallback",
    "memft",
    "use_curriculum",
    "use_optimizer",
    "watch_recall",
]


class MemFTLoss:
    """MemFT as `Trainer(compute_loss_func=...)`: sum_t w_t L_t / (sum_t w_t + eps) over each optimizer step.

    Neither gradient accumulation nor the number of data-parallel processes changes the gradient; the training loss that
    the Trainer logs is the mean over the step. In evaluation it is the ordinary loss, the mean of all tokens. It works
    in your own loop too, with or without accelerate: a step starts where gradients are set to zero. Settings are those
    of `memlaw.losses.settings.MemFT`: threshold, margin, rule, position, focus. Raises ConfigError.

    A loss function cannot tell which samples a row consists of; sw, `position` and `focus` need to know, so use
    `memft(trainer, ...)` for them. That also refuses settings that a loss function does not see: label smoothing, which
    the Trainer ignores if it has a loss function, and the sequence parallelism of DeepSpeed, which ignores the
    function.
    """

    def __init__(self, method: Method = "ot", **settings: Any) -> None:
        self.step = StepLoss(MemFT(method=method, **settings))
        self._inputs: Mapping[str, Any] | None = None
        self._called = False
        self._averaged = False

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        if labels is None:
            raise ConfigError(
                "The batch has no labels, so it has no targets to train on: give every row labels, -100 for its prompt."
            )
        check_parallelism(getattr(accelerator(), "parallelism_config", None))
        self._called = True
        if not torch.is_grad_enabled():
            sums = self.step.sums(outputs, labels, self._inputs or {})
            items = sums.tokens if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
            return sums.plain / items.clamp(min=1)
        loss = self.step.of_micro_batch(outputs, labels, self._batch())
        self._check_averaged(num_items_in_batch, loss)
        return loss / processes()  # the Trainer multiplies by it

    @contextmanager
    def watching(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Wraps the trainer's own computation of a loss. Raises ConfigError if it does not call this function."""
        self._inputs, self._called = dict(inputs), False
        try:
            yield
        finally:
            self._inputs = None
        if not self._called:
            raise ConfigError(
                "The class of the trainer overrides compute_loss and never called compute_loss_func, so it would not "
                "train with MemFT. Call super().compute_loss(...) there."
            )

    def _batch(self) -> Mapping[str, Any]:
        """The inputs of the model; empty if the trainer passes only outputs and labels."""
        memft = self.step.memft
        if self._inputs is None and (memft.method == "sw" or memft.position or memft.focus):
            raise ConfigError(
                "Method sw, position and focus weigh a token within its sample, but compute_loss_func does not get the "
                "samples of a batch: call memft(trainer, ...) on a Trainer without compute_loss_func."
            )
        return self._inputs or {}

    def _check_averaged(self, num_items: Tensor | int | None, loss: Tensor) -> None:
        """Raises ConfigError unless the Trainer undoes the mean over processes: then it counts the items of all."""
        if processes() == 1 or self._averaged:
            return
        items = torch.as_tensor(0 if num_items is None else num_items, dtype=torch.float32, device=loss.device).sum()
        dist.all_reduce(items)
        if float(items) < self.step.mean.so_far.tokens * (1 + processes()) / 2:
            raise ConfigError(UNAVERAGED)
        self._averaged = GradientState().sync_gradients  # a whole step was checked


def memft(
    trainer: Any,
    method: Method = "ot",
    *,
    optimizer: str | None = None,
    adamw_learning_rate: float | None = None,
    **settings: Any,
) -> Any:
    """Make MemFT the loss of a Trainer, and return the trainer.

    Like `compute_loss_func=MemFTLoss(...)`, but it also sees the batches. So packed samples are separated by their
    `position_ids`, and sw keeps a window for every sample, identified by its tokens, from step to step, in all
    processes, and in the Trainer's checkpoints. Raises ConfigError for a trainer in which MemFT would be wrong.

    `optimizer="muon"` also trains A and B of LoRA by Muon, and what else there is by AdamW at `adamw_learning_rate`
    (`use_optimizer`); by default the optimizer of the trainer is left alone.
    """
    loss = MemFTLoss(method, **settings)
    if not isinstance(trainer, Trainer):
        raise ConfigError(f"memft changes the loss of a transformers Trainer, but this is a {type(trainer).__name__}.")
    check_trainer(trainer)
    check_averaging(trainer.args)
    choose_optimizer(trainer, optimizer, adamw_learning_rate)
    trainer.compute_loss_func = loss
    trainer.__class__ = type(f"MemFT{type(trainer).__name__}", (_Watched, type(trainer)), {})
    if loss.step.windows is not None:
        keep_windows(trainer, loss.step.windows)
    return trainer


class _Watched:
    """Lets the loss function see the batch whose loss it computes."""

    compute_loss_func: MemFTLoss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with self.compute_loss_func.watching(inputs):
            return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]


def keep_windows(trainer: Any, windows: WindowState) -> None:
    """Save the windows of sw in the trainer's checkpoints, and restore them when it resumes."""

    # A local class, since transformers recreates a restored callback by calling its class without arguments.
    class MemFTWindows(TrainerCallback, ExportableState):  # type: ignore[misc]
        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"saved": windows_to_json(windows)}}

        def on_train_begin(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
            windows_from_json(windows, state.stateful_callbacks["MemFTWindows"]["attributes"]["saved"])

    trainer.add_callback(MemFTWindows())
