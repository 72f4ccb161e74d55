"""One pack of a probe: the cells of one length that train as one stack, in this process or in another.

Results go to the journal, cell by cell, and nowhere else: read them there.
"""

from __future__ import annotations

import functools
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, DataError, JournalError, MemlawError, ModelError, one_line
from memlaw.core.facts import EncodedFact
from memlaw.law.bits import memoryless_loss
from memlaw.sweep.engines.base import Resources
from memlaw.sweep.journal import Journal

if TYPE_CHECKING:
    from memlaw.adapter.placement import Placement
    from memlaw.diagnosis.decoding import Decoded
    from memlaw.model.base import Base
    from memlaw.training.result import StackProgress, Trained

Pack = tuple[Cell, ...]
"""Cells that train as one stack."""


@dataclass(frozen=True, eq=False)
class LoadedPack:
    """A pack with everything in memory that its training needs."""

    base: Base
    placement: Placement
    facts: Sequence[EncodedFact]
    cells: Pack

    @property
    def work(self) -> int:
        """Tokens that pass through the layers above the first adapted one: adapters x steps x rows of a step x tokens
        of a row.

        Multiplied by the parameters of those layers it would be the compute, but these are the same for all packs.
        """
        train = self.cells[0].train
        rows = min(train.batch_size or len(self.facts), len(self.facts))
        return len(self.cells) * train.steps * rows * max(len(fact.ids) for fact in self.facts)

    def unmeasured(self, cell: Cell, message: str) -> CellResult:
        """The result of a cell that failed before it could be measured."""
        return CellResult(
            cell=cell,
            status="failed",
            steps=0,
            parameters=self.placement.parameters(cell.rank),
            loss_init=None,
            loss_final=None,
            delta_loss=None,
            acc_token=None,
            acc_em=None,
            ordered=None,
            certified=None,
            records=len(self.facts),
            message=message,
        )

    def spec(self, resources: Resources, execution: Execution) -> PackSpec:
        """What another process needs to train this pack. Raises ConfigError for a base that is only in memory."""
        cache = execution.prefix_cache
        return PackSpec(
            model=reload_name(self.base),
            dtype="auto" if getattr(self.base.model, "is_quantized", False) else self.base.dtype,
            device="cuda" if resources.gpus else self.base.device,
            threads=resources.cpus,
            cells=self.cells,
            facts=tuple(self.facts),
            execution=replace(execution, prefix_cache=cache and str(Path(cache).resolve())),
        )


@dataclass(frozen=True)
class PackSpec:
    """Everything that another process needs to train a pack, to be pickled. It holds the facts: keep it as secret."""

    model: str
    """A Hub id, a directory or `memlaw/base`."""
    dtype: str
    device: str
    threads: int
    cells: Pack
    facts: tuple[EncodedFact, ...]
    execution: Execution


def reload_name(base: Base) -> str:
    """The name that another process can load this base by. Raises ConfigError for a base that is only in memory."""
    from memlaw.model.files import cached, is_gguf, source_of

    try:
        source = source_of(base.name)
        loadable = is_gguf(source) or cached(source, "config.json") is not None
    except ModelError:
        loadable = False
    if not loadable:
        raise ConfigError(
            f"The model {base.name} exists only in the memory of this process, so another process cannot load it. Save "
            "it and its tokenizer with `save_pretrained` and load them from there, or train inline."
        )
    return str(Path(base.name).resolve()) if Path(base.name).exists() else base.name


def run_pack(spec: PackSpec, root: str) -> list[str]:
    """Train and measure the pack in the journal at `root`; returns the keys of its cells that have a result.

    May run any number of times, anywhere, at once: the journal keeps the first result of a cell. Raises JournalError
    if nothing can be recorded, ConfigError if another model loads under that name, and the errors of loading it.
    """
    journal = Journal(root)
    keys = [cell.key for cell in spec.cells]
    if not all(map(journal.holds, keys)):
        _load_and_train(spec, journal)
    return [key for key in keys if journal.holds(key)]


def _load_and_train(spec: PackSpec, journal: Journal) -> None:
    import torch

    from memlaw.adapter.on_model import placement_on
    from memlaw.model.offload import evicted

    torch.set_num_threads(spec.threads)
    base = _loaded(spec.model, spec.dtype, spec.device)
    cell = spec.cells[0]
    if (base.fingerprint, base.tokenizer_fingerprint) != (cell.model, cell.tokenizer):
        raise ConfigError(
            f"The process of a pack loaded {spec.model} and got a model other than the one the probe was started with: "
            "weights or tokenizer differ. Save the model that is in memory and start the probe from there, or give "
            "every machine the same files."
        )
    placement = placement_on(cell.placement, base.model)
    with evicted(base, placement.first_layer, wanted=spec.execution.evict_prefix):
        train_pack(LoadedPack(base, placement, spec.facts, spec.cells), journal, execution=spec.execution)


@functools.lru_cache(maxsize=1)  # a worker that trains several packs loads the model once
def _loaded(model: str, dtype: str, device: str) -> Base:
    from transformers.utils import logging

    from memlaw.model.base import load

    logging.disable_progress_bar()  # the terminal belongs to the process that schedules
    return load(model, dtype=dtype, device=device)


def train_pack(
    pack: LoadedPack,
    journal: Journal,
    *,
    execution: Execution | None = None,
    on_news: Callable[[CellResult | StackProgress], None] | None = None,
) -> None:
    """Train the cells as one stack, measure those that the journal does not hold, and record each at once.

    While the stack trains, its checkpoint lies beside the cells in the journal's directory. An error is recorded with
    the cells it struck. Raises JournalError if nothing can be recorded any more.
    """
    from memlaw.training.checkpoint import Checkpoint
    from memlaw.training.run import Run
    from memlaw.training.stack import train_stack

    execution = execution or Execution()
    place = journal.checkpoint([cell.key for cell in pack.cells])
    checkpoint = Checkpoint(place, minutes=execution.checkpoint_minutes)

    def record(result: CellResult) -> None:
        journal.publish(result)
        if on_news is not None:
            on_news(result)

    def fail(cell: Cell, message: str) -> None:
        if not journal.holds(cell.key):
            record(pack.unmeasured(cell, message))

    with _recording_failures(pack.cells, fail):
        runs = [Run(cell.rank, pack.placement, cell.train) for cell in pack.cells]
        stack = train_stack(pack.base, pack.facts, runs, execution=execution, checkpoint=checkpoint, on_step=on_news)
        missing = [(cell, its) for cell, its in zip(pack.cells, stack, strict=True) if not journal.holds(cell.key)]
        decoded = _decoded(pack, [trained for _, trained in missing])
        for cell, trained in missing:
            with _recording_failures([cell], fail):
                record(_measured(pack, cell, trained, decoded.get(trained)))
        if all(journal.holds(cell.key) for cell in pack.cells):
            checkpoint.discard()


@contextmanager
def _recording_failures(cells: Sequence[Cell], fail: Callable[[Cell, str], None]) -> Iterator[None]:
    """Turn an error into the failure of `cells`, but for a journal that cannot be written: that concerns all packs."""
    try:
        yield
    except JournalError:
        raise
    except Exception as error:
        for cell in cells:
            fail(cell, failure_message(error))


def failure_message(error: Exception) -> str:
    """Why something failed, for the journal. Only the text of errors that cannot quote target text is kept."""
    quotable = isinstance(error, MemlawError | RuntimeError | MemoryError | OSError)
    text = f": {one_line(error)}" if quotable else ""
    where = ""
    if error.__traceback__ is not None:  # an error from another process comes without one
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(place.filename).name}, line {place.lineno}, in {place.name})"
    return f"{type(error).__name__}{text}{where}".encode(errors="replace").decode()


def _decoded(pack: LoadedPack, stack: Sequence[Trained]) -> dict[Trained, dict[int, Decoded]]:
    """What the adapters that finished decode to, side by side; nothing if that fails, so that each is tried alone."""
    import torch

    from memlaw.adapter.stack import AdapterStack
    from memlaw.diagnosis.decoding import greedy_by_each
    from memlaw.model.parts import frozen

    finished = [trained for trained in stack if trained.loss_final is not None]
    if len(finished) < 2:
        return {}
    try:
        with frozen(pack.base.model), torch.no_grad():
            together = AdapterStack.joined([trained.stack for trained in finished])
            return dict(zip(finished, greedy_by_each(pack.base, pack.facts, together), strict=True))
    except (DataError, RuntimeError, MemoryError):  # a loss that is no number, or K times the memory of one
        return {}


def _measured(pack: LoadedPack, cell: Cell, trained: Trained, decoded: dict[int, Decoded] | None) -> CellResult:
    from memlaw.diagnosis.measure import measure

    ended = replace(
        pack.unmeasured(cell, trained.message),
        status=trained.status,
        steps=trained.steps,
        loss_init=trained.loss_init if math.isfinite(trained.loss_init) else None,
    )
    if trained.loss_final is None:
        return ended
    with trained.attached(pack.base.model):
        # The law counts tokens: what a tokenizer does to a text has nothing to do with what an adapter holds.
        facts = [replace(fact, text=None) for fact in pack.facts]
        report = measure(pack.base, facts, decode=True, decoded=decoded)
    vocabulary = pack.base.model.get_output_embeddings().weight.shape[0]
    return replace(
        ended,
        loss_final=trained.loss_final,
        delta_loss=trained.loss_init - trained.loss_final,
        acc_token=report.acc_token,
        acc_em=report.acc_em,
        ordered=report.ordered,
        certified=report.certified,
        loss_memoryless=memoryless_loss([fact.target for fact in pack.facts], trained.loss_init, vocabulary),
        certified_tokens=sum(item.length for item in report.items if item.certified),
    )
