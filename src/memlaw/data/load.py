"""A memory set from anything that names one: a file, a directory, a Hub id, a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memlaw.core.facts import MemorySet
from memlaw.data import tasks
from memlaw.data.encoding import border_merges
from memlaw.data.facts import read_as
from memlaw.data.reading import Reading
from memlaw.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from memlaw.model.base import Base

_NAMED = 5  # facts in a warning

Facts = MemorySet | str | Path


def load_memory_set(
    facts: Facts,
    tokenizer: Tokenizer,
    drawable_ids: Callable[[], Sequence[int]],
    reading: Reading | None = None,
) -> MemorySet:
    """A memory set from a file, a directory, a Hub id, a `task:...` specification, or itself.

    `drawable_ids` gives the token ids that random targets may hold. Finding them takes a search over the model's head,
    so it is called only for a task that draws tokens. Raises DataError, and ConfigError for a task it does not know.
    """
    if isinstance(facts, MemorySet):
        return facts
    reading = reading or Reading()
    source = str(facts)
    if source.startswith(tasks.SPEC_PREFIX):
        memory_set = tasks.from_spec(source, tokenizer, drawable_ids, eos=reading.eos)
    else:
        memory_set = read_as(source, reading, tokenizer)
    merging = border_merges(memory_set, tokenizer)
    if not merging:
        return memory_set
    return replace(memory_set, warnings=(*memory_set.warnings, merging_warning(merging, memory_set)))


def memory_set_for(base: Base, facts: Facts) -> MemorySet:
    """`load_memory_set` for a loaded base."""
    from memlaw.model.reach import reachable_ids

    return load_memory_set(facts, base.tokenizer, partial(reachable_ids, base))


def merging_warning(ids: Sequence[str], memory_set: MemorySet) -> str:
    """The warning about the facts `ids` of `border_merges`."""
    shown = ", ".join(map(repr, ids[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")
    return (
        f"{len(ids)} of {len(memory_set.facts)} facts ({shown}) have other tokens when prompt and target are tokenised "
        "as one text. memlaw trains and judges them as two; a trainer or prompt that joins them sees other tokens. "
        "Moving a space from the end of the prompt to the start of the target fixes most cases."
    )
