"""MemFT in TRL's `SFTTrainer`: `memft(trainer, "ot")`.

TRL computes the log-probability of each label in its fused head, without logits, and MemFT needs nothing else. The
trainer computes its loss and metrics (entropy, mean_token_accuracy, num_tokens) as usual, and MemFT of the same forward
then replaces the loss. With an older TRL, whose model returns logits, those are used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from trl import SFTTrainer

from memlaw.core.config import Method
from memlaw.core.errors import ConfigError
from memlaw.integrations.loss import StepLoss
from memlaw.integrations.optimizer import choose_optimizer
from memlaw.integrations.refusals import check_trainer
from memlaw.integrations.transformers import keep_windows
from memlaw.losses import MemFT
from memlaw.model.tokenizer import stop_ids


def memft(
    trainer: Any,
    method: Method = "ot",
    *,
    optimizer: str | None = None,
    adamw_learning_rate: float | None = None,
    **settings: Any,
) -> Any:
    """Make MemFT the training loss of an SFTTrainer, and return the trainer.

    Settings are those of `memlaw.losses.settings.MemFT`. Neither gradient accumulation, nor data-parallel processes,
    nor packing changes the gradient; evaluation does not change. Raises ConfigError for a trainer in which MemFT would
    be wrong, and warns if `max_length` may have cut a target.

    `optimizer="muon"` also trains A and B of LoRA by Muon, and what else there is by AdamW at `adamw_learning_rate`
    (`memlaw.integrations.transformers.use_optimizer`); by default the optimizer of the trainer is left alone.
    """
    step = StepLoss(MemFT(method=method, **settings))
    if not isinstance(trainer, SFTTrainer):
        raise ConfigError(
            f"MemFT is a loss of target tokens, which a {type(trainer).__name__} does not have: pass an SFTTrainer, or "
            "use memlaw.integrations.transformers.memft for a plain Trainer."
        )
    if isinstance(trainer, _MemFT):
        raise ConfigError("The loss of this trainer is MemFT already: call memft once.")
    check_trainer(trainer)
    _check_sft(trainer)
    _warn_of_cuts(trainer)
    choose_optimizer(trainer, optimizer, adamw_learning_rate)
    trainer.__class__ = type(f"MemFT{type(trainer).__name__}", (_MemFT, type(trainer)), {"memft_step": step})
    trainer.loss_is_scaled_for_ga = True
    if step.windows is not None:
        keep_windows(trainer, step.windows)
    return trainer


class _MemFT:
    """Replaces the loss of the trainer by that of MemFT in every training step."""

    memft_step: StepLoss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, batch = inputs["labels"], dict(inputs)
        with _outputs_of(model) as outputs:
            theirs = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if not torch.is_grad_enabled():
            return theirs
        loss: Tensor = self.memft_step.of_micro_batch(outputs[0], labels, batch)
        return (loss, theirs[1]) if return_outputs else loss


@contextmanager
def _outputs_of(model: nn.Module) -> Iterator[list[Any]]:
    """Collects what the model returns."""
    outputs: list[Any] = []
    handle = model.register_forward_hook(lambda _model, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def _check_sft(trainer: Any) -> None:
    loss_type = getattr(trainer.args, "loss_type", "nll")
    if loss_type != "nll":
        raise ConfigError(
            f"loss_type is {loss_type!r}, but a trainer has only one loss: leave it at 'nll', which MemFT replaces."
        )
    if trainer.args.packing and getattr(trainer.args, "packing_strategy", None) == "wrapped":
        raise ConfigError(
            "packing_strategy='wrapped' cuts samples anywhere and does not mark where they start, so each would be "
            "learnt as the continuation of another: use 'bfd'."
        )
    if getattr(trainer, "aux_loss_enabled", False):
        raise ConfigError(
            "MemFT would replace the load-balancing loss of this mixture of experts too: set router_aux_loss_coef=0.0."
        )
    if not trainer.model_accepts_loss_kwargs and not hasattr(Trainer, "loss_is_scaled_for_ga"):
        raise ConfigError(
            "This version of transformers would divide the loss by the number of micro-batches a second time: install "
            "transformers 5.19 or later."
        )


def _warn_of_cuts(trainer: Any) -> None:
    """TRL silently cuts samples at max_length; a full one without end of sequence has probably been cut."""
    args, dataset = trainer.args, trainer.train_dataset
    if args.max_length is None or not hasattr(dataset, "__len__") or "labels" not in dataset.column_names:
        return
    tokenizer = trainer.processing_class
    ends = [getattr(tokenizer, "eos_token_id", None)]
    if ends[0] is not None:  # a turn of a chat may end with another token at which generation stops
        ends += stop_ids(tokenizer, getattr(trainer.model, "generation_config", None))
    cut = 0
    for row in dataset:
        cut += any(full and row["labels"][last] not in ends for last, full in _ends(row, args.max_length))
    if cut:
        warnings.warn(
            f"{cut} of {len(dataset)} training rows reach max_length={args.max_length} without an end of sequence: TRL "
            "cuts longer ones, and the missing part of a target cannot be recalled. Raise max_length.",
            stacklevel=3,
        )


def _ends(row: Any, most: int) -> Iterator[tuple[int, bool]]:
    """For each sample of a row, the place of its last token, and whether it has `most` tokens."""
    end = 0
    for length in row.get("seq_lengths") or [len(row["labels"])]:
        end += length
        yield end - 1, length >= most
