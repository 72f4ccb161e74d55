"""Train one adapter on a memory set and save it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from memlaw.adapter.peft import check_free, save
from memlaw.core.canonical import to_dict
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError
from memlaw.core.facts import MemorySet
from memlaw.data import encode, target_tokens
from memlaw.data.near_misses import encoded_near_misses
from memlaw.data.spelling import changed_facts, changed_warning
from memlaw.model.base import Base
from memlaw.model.offload import evicted
from memlaw.training.checkpoint import Checkpoint
from memlaw.training.result import StackProgress, Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

NEAR_MISSES = 256
"""Near misses at most that a training rehearses."""

CURVE_POINTS = 200
"""Values of a training curve that are kept at most."""


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
    files, and DataError for facts that cannot be encoded; OSError if `out` cannot be written. Warns of targets that the
    tokenizer changes: they are trained, but not `recalled`, since another text would come back.
    """
    if out is not None:  # fail now rather than after hours of training
        check_free(Path(out))
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    execution = execution or Execution()
    if execution.evict_prefix and run.config.served_as:
        raise ConfigError(
            "--evict-prefix keeps the lower layers of one model off the accelerator, and --for trains on copies of it: "
            "give one of the two."
        )
    encoded = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    run = _with_near_misses(run, base, memory_set)
    changed = changed_facts(base, encoded)
    if changed:  # before hours of training rather than after them
        warnings.warn(changed_warning(changed, len(encoded)), stacklevel=2)
    shares: dict[int, float] = {}

    def record(progress: StackProgress) -> None:
        shares[progress.step] = progress.ordered  # by step: one that ran out of memory is taken again
        if on_step is not None:
            on_step(progress)

    checkpoint = None if out is None else Checkpoint(_beside(Path(out)), minutes=execution.checkpoint_minutes)
    with evicted(base, run.placement.first_layer, wanted=execution.evict_prefix):
        (trained,) = train_stack(base, encoded, [run], execution=execution, checkpoint=checkpoint, on_step=record)
    trained = replace(trained, curve=thinned(shares), other_text=changed, recalled=trained.recalled and not changed)
    if out is not None and trained.status == "finished":
        details = {
            "facts_fingerprint": memory_set.fingerprint,
            "records": len(encoded),
            "tokens": target_tokens(encoded),
            "train": to_dict(replace(trained.config, steps=max(1, trained.steps))),  # 0: everything was recalled before
            "loss_init": trained.loss_init,
            "loss_final": trained.loss_final,
            "curve": trained.curve,
        }
        save(trained.stack, run.placement, base, Path(out), details=details)
    if checkpoint is not None:
        checkpoint.discard()
    return trained


def _with_near_misses(run: Run, base: Base, memory_set: MemorySet) -> Run:
    """The run with near misses to rehearse, if it is to; warns if the prompts have too little in common for any."""
    if not run.config.rehearse or run.near_misses:
        return run
    made = encoded_near_misses(memory_set, base.tokenizer, NEAR_MISSES, seed=run.config.seed, part="training")
    if not made:
        warnings.warn(
            "No near misses can be made of these prompts, which have too little in common: nothing is rehearsed.",
            stacklevel=3,
        )
    return replace(run, near_misses=made)


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.checkpoint")


def thinned(shares: Mapping[int, float], points: int = CURVE_POINTS) -> tuple[float | None, ...]:
    """Step (from 1) -> share, as at most `points` means over blocks of equally many steps; the last may be shorter.

    A block without any step is None: a training that resumed from a checkpoint did not see the steps before it.
    """
    steps = max(shares, default=0)
    block = max(1, -(-steps // points))
    blocks = (
        [shares[step] for step in range(start, start + block) if step in shares] for start in range(1, steps + 1, block)
    )
    return tuple(fmean(values) if values else None for values in blocks)
