"""One pack of a probe: the cells of one length that train as one stack, here or in a process that knows nothing yet.

What is measured goes into the journal, cell by cell, and nowhere else: whoever asked for a pack reads it there.
"""

from __future__ import annotations

import functools
import json
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memlaw.core.canonical import canonical_json, to_dict
from memlaw.core.cells import Cell, CellResult, cell_from_dict
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, JournalError, MemlawError, ModelError, one_line
from memlaw.core.facts import EncodedFact
from memlaw.law.bits import memoryless_loss
from memlaw.sweep.journal import Journal

if TYPE_CHECKING:
    from memlaw.adapter.placement import Placement
    from memlaw.model.base import Base
    from memlaw.training.result import StackProgress, Trained


@dataclass(frozen=True)
class PackSpec:
    """Everything that another process needs to train a pack. It holds the facts, so it is as secret as they are."""

    model: str
    """A Hub id, a directory or `memlaw/base`."""
    dtype: str
    device: str
    threads: int
    cells: tuple[Cell, ...]
    facts: tuple[EncodedFact, ...]
    execution: Execution

    def to_json(self) -> str:
        return canonical_json(to_dict(self))

    @classmethod
    def from_json(cls, text: str) -> PackSpec:
        values = json.loads(text)
        facts = (EncodedFact(f["id"], tuple(f["ids"]), f["prompt_length"]) for f in values["facts"])
        parts = {
            "cells": tuple(map(cell_from_dict, values["cells"])),
            "facts": tuple(facts),
            "execution": Execution(**values["execution"]),
        }
        return cls(**{**values, **parts})


def reloadable(base: Base) -> str:
    """The name that another process can load this base by. Raises ConfigError for one that is only in memory."""
    from memlaw.model.files import cached, source_of

    try:
        found = cached(source_of(base.name), "config.json")
    except ModelError:
        found = None
    if found is None:
        raise ConfigError(
            f"The model {base.name} is in the memory of this process only, and another process has nothing to load it "
            "from. Save it and its tokenizer with `save_pretrained` and load them from there, or train inline."
        )
    return str(Path(base.name).resolve()) if Path(base.name).is_dir() else base.name


def run_pack(spec_json: str, root: str) -> list[str]:
    """Train and measure the pack of a `PackSpec` in the journal at `root`; the keys of its cells that have a result.

    May run any number of times, anywhere, at once: the journal takes the first result of a cell, and the others find
    it there. Raises JournalError if nothing can be recorded, ConfigError if the model under that name is another one,
    and whatever keeps the model from being loaded.
    """
    spec = PackSpec.from_json(spec_json)
    journal = Journal(root)
    keys = [cell.key for cell in spec.cells]
    if not all(map(journal.holds, keys)):
        _train_here(spec, journal)
    return [key for key in keys if journal.holds(key)]


def _train_here(spec: PackSpec, journal: Journal) -> None:
    import torch

    from memlaw.adapter.on_model import placement_on
    from memlaw.model.offload import evicted

    torch.set_num_threads(spec.threads)
    base = _loaded(spec.model, spec.dtype, spec.device)
    cell = spec.cells[0]
    if (base.fingerprint, base.tokenizer_fingerprint) != (cell.model, cell.tokenizer):
        raise ConfigError(
            f"The model that loads as {spec.model} in the process of a pack is not the one the probe was started with: "
            "weights or tokenizer differ. Save what is in memory and start the probe from there, or give every machine "
            "the same files."
        )
    placement = placement_on(cell.placement, base.model)
    with evicted(base, placement.first_layer, wanted=spec.execution.evict_prefix):
        train_pack(base, spec.facts, placement, spec.cells, journal, execution=spec.execution)


@functools.lru_cache(maxsize=1)
def _loaded(model: str, dtype: str, device: str) -> Base:
    """A worker that trains several packs loads the model once."""
    from transformers.utils import logging

    from memlaw.model.base import load

    logging.disable_progress_bar()  # the terminal is the driver's
    return load(model, dtype=dtype, device=device)


def train_pack(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement,
    cells: Sequence[Cell],
    journal: Journal,
    *,
    execution: Execution | None = None,
    on_news: Callable[[CellResult | StackProgress], None] | None = None,
) -> None:
    """Train `cells` as one stack on `facts`; measure those that the journal does not hold, and record each at once.

    While the stack trains, its checkpoint lies beside the cells in the journal's directory. An error is recorded with
    the cells it struck. Raises JournalError if nothing can be recorded any more.
    """
    from memlaw.training.checkpoint import Checkpoint
    from memlaw.training.run import Run
    from memlaw.training.stack import train_stack

    execution = execution or Execution()
    place = journal.checkpoint([cell.key for cell in cells])
    checkpoint = Checkpoint(place, minutes=execution.checkpoint_minutes)

    def record(result: CellResult) -> None:
        journal.publish(result)
        if on_news is not None:
            on_news(result)

    def fail(cell: Cell, why: str) -> None:
        if not journal.holds(cell.key):
            record(unmeasured(cell, placement, len(facts), why))

    with _failing(cells, fail):
        runs = [Run(cell.rank, placement, cell.train) for cell in cells]
        stack = train_stack(base, facts, runs, execution=execution, checkpoint=checkpoint, on_step=on_news)
        for cell, trained in zip(cells, stack, strict=True):
            if not journal.holds(cell.key):
                with _failing([cell], fail):
                    record(_measured(base, facts, placement, cell, trained))
        if all(journal.holds(cell.key) for cell in cells):
            checkpoint.discard()


@contextmanager
def _failing(cells: Sequence[Cell], fail: Callable[[Cell, str], None]) -> Iterator[None]:
    """Turn an error into the failure of `cells`; a journal that cannot be written is everybody's."""
    try:
        yield
    except JournalError:
        raise
    except Exception as error:
        for cell in cells:
            fail(cell, reason(error))


def reason(error: Exception) -> str:
    """Why something failed, for the journal. Target text is not for logs: only errors that quote no data are quoted."""
    quotable = isinstance(error, MemlawError | RuntimeError | MemoryError | OSError)
    text = f": {one_line(error)}" if quotable else ""
    where = ""
    if error.__traceback__ is not None:  # it stays behind in the process that raised the error
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(place.filename).name}, line {place.lineno}, in {place.name})"
    return f"{type(error).__name__}{text}{where}".encode(errors="replace").decode()


def _measured(
    base: Base, facts: Sequence[EncodedFact], placement: Placement, cell: Cell, trained: Trained
) -> CellResult:
    from memlaw.diagnosis.measure import measure

    ended = replace(
        unmeasured(cell, placement, len(facts), trained.message),
        status=trained.status,
        steps=trained.steps,
        loss_init=trained.loss_init if math.isfinite(trained.loss_init) else None,
    )
    if trained.loss_final is None:
        return ended
    with trained.attached(base.model):
        report = measure(base, facts, decode=True)
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    return replace(
        ended,
        loss_final=trained.loss_final,
        delta_loss=trained.loss_init - trained.loss_final,
        acc_token=report.acc_token,
        acc_em=report.acc_em,
        ordered=report.ordered,
        certified=report.certified,
        loss_memoryless=memoryless_loss([fact.target for fact in facts], trained.loss_init, vocabulary),
        certified_tokens=sum(item.length for item in report.items if item.certified),
    )


def unmeasured(cell: Cell, placement: Placement, records: int, message: str) -> CellResult:
    """The result of a cell that failed before it could be measured."""
    return CellResult(
        cell=cell,
        status="failed",
        steps=0,
        parameters=placement.parameters(cell.rank),
        loss_init=None,
        loss_final=None,
        delta_loss=None,
        acc_token=None,
        acc_em=None,
        ordered=None,
        certified=None,
        records=records,
        message=message,
    )
