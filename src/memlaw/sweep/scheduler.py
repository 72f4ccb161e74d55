"""Trains every pack of a probe, with whichever engine, and retries the packs in which something went wrong."""

from __future__ import annotations

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, JournalError
from memlaw.sweep.engines.base import Engine, Inline, Resources, Spec
from memlaw.sweep.engines.shards import Shard, longest_first
from memlaw.sweep.journal import Journal
from memlaw.sweep.pack import LoadedPack, Pack, failure_message, run_pack, train_pack

if TYPE_CHECKING:
    from memlaw.training.result import StackProgress

RETRIES = 2
"""How often a pack with failed cells is tried again, behind all others, before it is left to the next run."""

PackChooser = Callable[[Sequence[Pack], Sequence[CellResult]], Pack | None]
"""The packs still to be trained and the results so far -> the pack to train next, or None to stop."""


@dataclass(frozen=True)
class ProbeProgress:
    """How far a probe has come: sent when a pack starts, after each training step and after each recorded cell; with
    an engine that trains elsewhere, after each pack."""

    cells: int
    recorded: int
    """Cells with a result that counts, those of earlier runs included."""
    failed: int
    pack: int
    """The pack in training, or just tried elsewhere; from 1."""
    packs: int
    news: CellResult | StackProgress | None
    """The cell just recorded, the training step just taken, or None when a pack starts or, elsewhere, ends."""


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """How one run of a probe is carried out: its cost in time and memory, never its results."""

    execution: Execution = field(default_factory=Execution)
    engine: Engine = field(default_factory=Inline)
    resources: Resources | None = None
    """What each pack takes; None: what suits the engine and the device."""
    shard: Shard | None = None
    """Train this share of the packs only."""
    chooser: PackChooser | None = None
    """Picks the pack to train before each one; only with an engine of this process."""
    on_progress: Callable[[ProbeProgress], None] | None = None


class Scheduler:
    """Trains the packs of one run, each known by its place among all packs of the probe."""

    def __init__(self, packs: Sequence[LoadedPack], journal: Journal, run: ProbeRun) -> None:
        self.packs, self.journal, self.run = packs, journal, run
        self.work = [pack.work for pack in packs]
        self.own = list(range(len(packs))) if run.shard is None else run.shard.share(self.work)
        self.keys = {cell.key for number in self.own for cell in packs[number].cells}
        """Keys of all cells of this run."""
        tried = {result.cell.key: result.status for result in journal.results() if result.cell.key in self.keys}
        self.failed = {key for key, status in tried.items() if status == "failed"}
        self.recorded = tried.keys() - self.failed

    def train(self, resources: Resources) -> None:
        """Train the packs with a missing cell. An interrupt ends the workers.

        Raises JournalError if nothing can be recorded any more, ConfigError if a worker loaded another model.
        """
        numbers = [number for number in self.own if self._missing(number)]
        with _terminable():
            if self.run.engine.in_process:
                self._try_all(self._train_here, {number: number for number in numbers}, resources)
            elif numbers:
                by_work = longest_first([self.work[number] for number in numbers])
                order = [numbers[place] for place in by_work]
                specs = {self.packs[number].spec(resources, self.run.execution): number for number in order}
                train_elsewhere = partial(run_pack, root=str(self.journal.root.resolve()))
                self._try_all(train_elsewhere, specs, resources)

    def _try_all(self, train: Callable[[Spec], object], numbers: Mapping[Spec, int], resources: Resources) -> None:
        waiting, tries, engine = deque(numbers), Counter[int](), self.run.engine
        with closing(engine.run(train, waiting, resources)) as outcomes:
            while True:
                if self.run.chooser is not None:
                    self._prioritise(waiting, numbers, self.run.chooser)
                outcome = next(outcomes, None)
                if outcome is None:
                    return
                number = numbers[outcome.spec]
                tries[number] += 1
                self._record_outcome(number, outcome.error)
                if not engine.in_process:
                    self._report(number, None)
                if self._missing(number) and tries[number] <= RETRIES:
                    waiting.append(outcome.spec)

    def _prioritise(self, waiting: deque[Spec], numbers: Mapping[Spec, int], chooser: PackChooser) -> None:
        """Move the chosen pack to the front, or empty the queue if the chooser stops."""
        offered = {self.packs[numbers[spec]].cells: spec for spec in waiting}
        results = [result for result in self.journal.results() if result.cell.key in self.keys]
        chosen = chooser(list(offered), results) if offered else None
        if chosen is None:
            waiting.clear()
        else:
            waiting.remove(offered[chosen])
            waiting.appendleft(offered[chosen])

    def _record_outcome(self, number: int, error: Exception | None) -> None:
        """Count the cells of a pack, and record what the pack itself could not: that its worker died or never began."""
        if isinstance(error, JournalError | ConfigError):  # every other pack would meet it too
            raise error
        pack, missing = self.packs[number], self._missing(number)
        if error is not None:
            for cell in missing:
                self.journal.publish(pack.unmeasured(cell, failure_message(error)))
        for cell in pack.cells:
            self._count(cell, done=cell not in missing)

    def _missing(self, number: int) -> list[Cell]:
        return [cell for cell in self.packs[number].cells if not self.journal.holds(cell.key)]

    def _train_here(self, number: int) -> None:
        on_news = partial(self._report, number)
        on_news(None)
        train_pack(self.packs[number], self.journal, execution=self.run.execution, on_news=on_news)

    def _report(self, number: int, news: CellResult | StackProgress | None) -> None:
        if isinstance(news, CellResult):
            self._count(news.cell, done=news.status != "failed")
        if self.run.on_progress is not None:
            recorded, failed = len(self.recorded), len(self.failed)
            self.run.on_progress(ProbeProgress(len(self.keys), recorded, failed, number + 1, len(self.packs), news))

    def _count(self, cell: Cell, *, done: bool) -> None:
        (self.recorded if done else self.failed).add(cell.key)
        (self.failed if done else self.recorded).discard(cell.key)


@contextmanager
def _terminable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, unless it is handled already: cluster schedulers send it before they kill."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
