"""Train one adapter on a memory set and save it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from memlaw.adapter.peft import check_free, save
from memlaw.core.canonical import to_dict
from memlaw.core.config import Execution
from memlaw.core.facts import MemorySet
from memlaw.data import encode, target_tokens
from memlaw.model.base import Base
from memlaw.model.offload import evicted
from memlaw.training.checkpoint import Checkpoint
from memlaw.training.result import StackProgress, Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack


def train_adapter(
    base: Base,
    memory_set: MemorySet,
    run: Run,
    *,
    out: str | os.PathLike[str] | None = None,
    execution: Execution | None = None,
    on_step: Callable[[StackProgress], None] | None = None,
) -> Trained:
    """Train one adapter on all facts of a memory set, and save it to `out` unless training diverged or failed.

    Until then, checkpoints go to the folder `out` with `.checkpoint` added to its name; a repeated call resumes from
    the latest one. Raises, before any training, AdapterError for an impossible rank or an `out` that holds other
    files, and DataError for facts that cannot be encoded; OSError if `out` cannot be written.
    """
    if out is not None:  # fail now rather than after hours of training
        check_free(Path(out))
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    execution = execution or Execution()
    encoded = encode(memory_set, base.tokenizer, context=base.context)
    checkpoint = None if out is None else Checkpoint(_beside(Path(out)), minutes=execution.checkpoint_minutes)
    with evicted(base, run.placement.first_layer, wanted=execution.evict_prefix):
        (trained,) = train_stack(base, encoded, [run], execution=execution, checkpoint=checkpoint, on_step=on_step)
    if out is not None and trained.status == "finished":
        details = {
            "facts_fingerprint": memory_set.fingerprint,
            "records": len(encoded),
            "tokens": target_tokens(encoded),
            "train": to_dict(replace(run.config, steps=trained.steps)),
            "loss_final": trained.loss_final,
        }
        save(trained.stack, run.placement, base, Path(out), details=details)
    if checkpoint is not None:
        checkpoint.discard()
    return trained


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")
