"""Trainers that MemFT would not be right in, refused in one sentence each before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from memlaw.core.errors import ConfigError
from memlaw.integrations.step import processes


def check_trainer(trainer: Any) -> None:
    """Raises ConfigError for a trainer that has another loss already, or splits what MemFT must see as one."""
    args = trainer.args
    if trainer.compute_loss_func is not None:
        raise ConfigError(
            f"This {type(trainer).__name__} has a loss function already ({_name(trainer.compute_loss_func)}), and two "
            "cannot both be its loss. Make the trainer without compute_loss_func, and call memft once."
        )
    if args.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor is {args.label_smoothing_factor:g}: it keeps every token's probability away from "
            "1, which is where MemFT takes it. Set it to 0."
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"One process would split each batch over {args.n_gpu} GPUs (DataParallel). Start the script with "
            "`accelerate launch` or torchrun, or show it one GPU with CUDA_VISIBLE_DEVICES."
        )
    check_parallelism(getattr(trainer.accelerator, "parallelism_config", None))


def check_parallelism(config: Any) -> None:
    """Raises ConfigError where processes share a sequence, so that none sees its losses whole."""
    sizes = {name: getattr(config, f"{name}_size", 1) or 1 for name in ("cp", "sp", "tp")}
    if any(size > 1 for size in sizes.values()):
        found = ", ".join(f"{name}_size={size}" for name, size in sizes.items() if size > 1)
        raise ConfigError(
            f"Under sequence or tensor parallelism ({found}) a custom loss sees a part of each sequence, or is not "
            "called at all. MemFT works under data parallelism: set these sizes to 1."
        )


def check_packing(inputs: Mapping[str, Any]) -> None:
    """Raises ConfigError for a packed batch in which samples see one another, or positions do not count a sample.

    transformers keeps samples apart by `position_ids` [batch, time], and only where it is given no mask; a mask
    [batch, time] that numbers them does the same elsewhere. What the mask leaves out may have any position.
    """
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return
    begins = positions[:, 1:] - positions[:, :-1] != 1
    if isinstance(mask, Tensor) and mask.dim() == 2:
        begins = begins & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
        if bool((begins & (mask[:, 1:] == mask[:, :-1])).any()):
            raise ConfigError(
                "position_ids begin anew within rows whose attention_mask makes them one text, so every packed sample "
                "would see those before it. Leave attention_mask out of packed batches."
            )
    if bool((begins & (positions[:, 1:] != 0)).any()):
        raise ConfigError(
            "position_ids jump within a row without beginning anew at 0, so samples would be cut where none begins. "
            "Count every packed sample from 0, each token one more."
        )


def check_averaging(args: Any) -> None:
    """Raises ConfigError where the trainer does not undo the mean that data parallelism takes."""
    if processes() > 1 and not args.average_tokens_across_devices:
        raise ConfigError(UNAVERAGED)


UNAVERAGED = (
    "With average_tokens_across_devices=False the loss would come out too small by the number of processes: leave it "
    "True, as it is by default."
)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
