"""Trainers and batches in which MemFT would be wrong, refused before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from memlaw.core.errors import ConfigError
from memlaw.integrations.step import processes


def check_trainer(trainer: Any) -> None:
    """Raises ConfigError for a trainer with another loss, or one that splits batches so that MemFT would be wrong."""
    args = trainer.args
    if trainer.compute_loss_func is not None:
        raise ConfigError(
            f"This {type(trainer).__name__} has a loss function already ({_name(trainer.compute_loss_func)}), and it "
            "can have only one. Create the trainer without compute_loss_func, and call memft once."
        )
    if args.label_smoothing_factor:
        raise ConfigError(
            f"label_smoothing_factor is {args.label_smoothing_factor:g}: it keeps the probability of every token away "
            "from 1, which works against MemFT. Set it to 0."
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"One process would split each batch over {args.n_gpu} GPUs (DataParallel), and MemFT would be wrong "
            "there. Start the script with `accelerate launch` or torchrun, or give it one GPU with "
            "CUDA_VISIBLE_DEVICES."
        )
    check_parallelism(getattr(trainer.accelerator, "parallelism_config", None))


def check_parallelism(config: Any) -> None:
    """Raises ConfigError if several processes share a sequence, so that none sees all of its losses."""
    sizes = {name: getattr(config, f"{name}_size", 1) or 1 for name in ("cp", "sp", "tp")}
    if any(size > 1 for size in sizes.values()):
        split = ", ".join(f"{name}_size={size}" for name, size in sizes.items() if size > 1)
        raise ConfigError(
            f"Under sequence or tensor parallelism ({split}) a custom loss sees a part of each sequence, or is not "
            "called at all. MemFT works under data parallelism: set these sizes to 1."
        )


def check_unsharded(trainer: Any) -> None:
    """Raises ConfigError if a process may hold only a part of a matrix, whose singular values are not the whole's."""
    engines = {
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "FSDP": trainer.is_fsdp_enabled,
        "Tensor parallelism": any(isinstance(p, DTensor) for p in trainer.model.parameters() if p.requires_grad),
    }
    if used := [name for name, enabled in engines.items() if enabled]:
        raise ConfigError(
            f"{used[0]} splits the matrices of an adapter over processes, and Muon needs them whole: it would "
            "orthogonalise each part by itself. Train with plain data parallelism, or leave optimizer out."
        )


def check_packing(inputs: Mapping[str, Any]) -> None:
    """Raises ConfigError for a packed batch in which samples see one another, or positions do not restart at 0.

    transformers separates samples by `position_ids` [batch, time] only if it gets no mask; other libraries separate
    them by a mask [batch, time] with a number for each sample. Masked tokens may have any position.
    """
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return
    begins = positions[:, 1:] - positions[:, :-1] != 1
    if isinstance(mask, Tensor) and mask.dim() == 2:
        begins = begins & (mask[:, 1:] != 0) & (mask[:, :-1] != 0)
        if bool((begins & (mask[:, 1:] == mask[:, :-1])).any()):
            raise ConfigError(
                "position_ids restart within rows that the attention_mask treats as one text, so every packed sample "
                "would see those before it. Leave attention_mask out of packed batches."
            )
    if bool((begins & (positions[:, 1:] != 0)).any()):
        raise ConfigError(
            "position_ids jump within a row without restarting at 0, so samples would be cut in the wrong places. "
            "Count the tokens of every packed sample from 0."
        )


def check_averaging(args: Any) -> None:
    """Raises ConfigError if the trainer does not undo the mean that data parallelism takes."""
    if processes() > 1 and not args.average_tokens_across_devices:
        raise ConfigError(UNAVERAGED)


UNAVERAGED = (
    "With average_tokens_across_devices=False the loss would be too small by the number of processes: leave it True, "
    "the default."
)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
