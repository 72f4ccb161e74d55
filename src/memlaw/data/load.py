"""A memory set from anything that names one: a file, a directory, a Hub id, a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memlaw.core.facts import MemorySet
from memlaw.data import tasks
from memlaw.data.encoding import border_merges
from memlaw.data.facts import OnConflict, read
from memlaw.model.base import Base
from memlaw.model.reach import reachable_ids

_NAMED = 5
"""Facts named in a warning."""

Facts = MemorySet | str | Path


def load_memory_set(
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
