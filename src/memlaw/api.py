"""The Python API: train, recall and probe on a model and tokenizer that are already in memory.

Each is a few lines over the parts; read them as examples of how the parts fit together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memlaw import tasks
from memlaw.adapter import Placement, attach, check_free, parse_placement, save
from memlaw.data import OnConflict, border_merges, encode, read, target_tokens
from memlaw.errors import ConfigError
from memlaw.eviction import evicted
from memlaw.measure import measure
from memlaw.model import Base, frozen, wrap
from memlaw.reach import frozen_head, reachable_tokens
from memlaw.records import EncodedFact, Execution, MemorySet, RecallReport, TrainConfig, to_dict
from memlaw.training import UNTIL_RECALLED, Checkpoint, StackProgress, Trained, train_stack

if TYPE_CHECKING:
    from memlaw.sweep import ProbeSummary

REACHABLE = 0.9
"""Random targets are drawn from tokens that some hidden state gives more than this probability."""

_JUDGED = 4096
"""Tokens of a large vocabulary whose reach is computed to draw random targets from."""

_NAMED = 5
"""Facts named in a warning."""

Facts = MemorySet | str | Path


def train(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    rank: int,
    placement: str | None = None,
    out: str | os.PathLike[str] | None = None,
    config: TrainConfig | None = None,
    execution: Execution | None = None,
    on_step: Callable[[StackProgress], None] | None = None,
    **settings: Any,
) -> Trained:
    """Train one adapter until `facts` are recalled (or for a budget), and save it in PEFT's format to `out`.

    `settings` are fields of TrainConfig, such as method="ot"; without a `config` they change the settings that
    `memlaw train` uses. With `out`, an interrupted training goes on where its last checkpoint was when it is repeated.
    `model` is left as it was. Raises AdapterError, ConfigError, DataError.
    """
    known = [field.name for field in fields(TrainConfig)]
    if unknown := sorted(settings.keys() - set(known)):
        raise ConfigError(f"Unknown setting {', '.join(unknown)}: it would change nothing. Known: {', '.join(known)}.")
    chosen = replace(config or UNTIL_RECALLED, **settings)
    base = wrap(model, tokenizer)
    memory_set = memory_set_of(base, facts)
    encoded = encode(memory_set, tokenizer, context=base.context)
    where = parse_placement(placement, model)
    return train_on(base, memory_set, encoded, rank, where, chosen, out=out, execution=execution, on_step=on_step)


def train_on(
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


def recall(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    adapter: str | os.PathLike[str] | None = None,
    decode: bool = True,
) -> RecallReport:
    """Did it stick? Per-token probabilities and, with `decode`, verbatim recall and certificates of `facts`.

    `model` is a base, a merged model, or a PEFT model; `adapter` is a directory to add to it for the measurement.
    Raises AdapterError, DataError.
    """
    base = wrap(model, tokenizer)
    encoded = encode(memory_set_of(base, facts), tokenizer, context=base.context)
    with nullcontext() if adapter is None else attach(base, Path(adapter)):
        return measure(base, encoded, decode=decode, explain=True)


def probe(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    out: str | os.PathLike[str],
    *,
    execution: Execution | None = None,
    **settings: Any,
) -> ProbeSummary:
    """Train and measure a grid of adapters; `settings` are those of ProbeConfig, such as ranks=[1, 2], lengths=[16].

    What `out` already holds is not trained again. Raises ConfigError, DataError, AdapterError, JournalError.
    """
    from memlaw.sweep import ProbeConfig
    from memlaw.sweep import probe as run

    base = wrap(model, tokenizer)
    return run(base, memory_set_of(base, facts), ProbeConfig(**settings), out, execution=execution)


def memory_set_of(
    base: Base,
    facts: Facts,
    *,
    eos: bool | None = None,
    on_conflict: OnConflict = "error",
    prompt_field: str | None = None,
    target_field: str | None = None,
) -> MemorySet:
    """A memory set from a file, a directory, a Hub id, a `task:...` specification, or itself. Raises DataError."""
    if isinstance(facts, MemorySet):
        return facts
    source = str(facts)
    if source.startswith(tasks.SPEC_PREFIX):
        found = tasks.from_spec(source, base.tokenizer, reachable_ids(base), eos=eos)
    else:
        found = read(
            source,
            eos=eos,
            on_conflict=on_conflict,
            tokenizer=base.tokenizer,
            prompt_field=prompt_field,
            target_field=target_field,
        )
    merging = border_merges(found, base.tokenizer)
    return replace(found, warnings=(*found.warnings, merging_warning(merging, found))) if merging else found


def merging_warning(ids: Sequence[str], memory_set: MemorySet) -> str:
    shown = ", ".join(map(repr, ids[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")
    return (
        f"{len(ids)} of {len(memory_set.facts)} facts ({shown}) are cut into other tokens where prompt and target are "
        "one text. They are trained and judged as two; a trainer or prompt that lets the text run on meets other "
        "tokens. A space at the start of the target rather than at the end of the prompt mends most."
    )


def reachable_ids(base: Base) -> list[int]:
    """Ids of ordinary tokens with reach > 0.9, rising; of a large vocabulary, among 4,096 drawn with a fixed seed."""
    special = set(base.tokenizer.all_special_ids)
    ordinary = [token for token in sorted(base.tokenizer.get_vocab().values()) if token not in special]
    if len(ordinary) > _JUDGED:
        drawn = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0))[:_JUDGED]
        ordinary = sorted(ordinary[place] for place in drawn.tolist())
    with frozen(base.model):
        return reachable_tokens(frozen_head(base.model), above=REACHABLE, tokens=ordinary).tolist()
