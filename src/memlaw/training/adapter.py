"""Train one adapter on encoded facts and save it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from memlaw.adapter.peft import check_free, save
from memlaw.adapter.placement import Placement
from memlaw.core.canonical import to_dict
from memlaw.core.config import Execution, TrainConfig
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.data import target_tokens
from memlaw.model.base import Base
from memlaw.model.offload import evicted
from memlaw.training.checkpoint import Checkpoint
from memlaw.training.result import StackProgress, Trained
from memlaw.training.stack import train_stack


def train_adapter(
    base: Base,
    memory_set: MemorySet,
    encoded: Sequence[EncodedFact],
    rank: int,
    placement: Placement,
    config: TrainConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    execution: Execution | None = None,
    on_step: Callable[[StackProgress], None] | None = None,
) -> Trained:
    """Train one adapter on facts already encoded, and save it to `out` unless it diverged.

    Until it is saved its checkpoint is the folder `out` with `.checkpoint` added to its name: an interrupted training
    goes on from there when it is repeated.
    Raises AdapterError, before any training, for a rank that is none here and an `out` that holds something else;
    OSError if `out` cannot be written.
    """
    if out is not None:  # what can be known before the work should not be found out after it
        check_free(Path(out))
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    execution = execution or Execution()
    checkpoint = None if out is None else Checkpoint(_beside(Path(out)), minutes=execution.checkpoint_minutes)
    with evicted(base, placement.first_layer, wanted=execution.evict_prefix):
        (trained,) = train_stack(
            base,
            encoded,
            placement,
            [(rank, config)],
            on_step=on_step,
            checkpoint=checkpoint,
            compiled=execution.compiled,
            prefix_cache=execution.prefix_cache,
        )
    if out is not None and trained.status == "finished":
        details = {
            "facts_fingerprint": memory_set.fingerprint,
            "records": len(encoded),
            "tokens": target_tokens(encoded),
            "train": to_dict(replace(config, steps=trained.steps)),
            "loss_final": trained.loss_final,
        }
        save(trained.stack, placement, base, Path(out), details=details)
    if checkpoint is not None:
        checkpoint.discard()
    return trained


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")
