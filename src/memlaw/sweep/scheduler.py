"""Sees to it that every pack of a probe is trained, by whatever engine, and tried again where something went wrong."""

from __future__ import annotations

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, JournalError
from memlaw.core.facts import EncodedFact
from memlaw.sweep.engines.base import Engine, Resources, Spec
from memlaw.sweep.engines.shards import Shard, longest_first
from memlaw.sweep.journal import Journal
from memlaw.sweep.pack import PackSpec, reason, reloadable, run_pack, train_pack, unmeasured

if TYPE_CHECKING:
    from memlaw.adapter.placement import Placement
    from memlaw.model.base import Base
    from memlaw.training.result import StackProgress

RETRIES = 2
"""How often a pack with failed cells is tried again, behind all others, before it is left to the next run."""

Pack = tuple[Cell, ...]
"""The cells that train as one stack."""

Choose = Callable[[Sequence[Pack], Sequence[CellResult]], Pack | None]
"""The packs still to be trained and the results so far -> the pack to train next, or None for no more."""


@dataclass(frozen=True)
class ProbeProgress:
    """Where a probe stands: at the start of a pack, after each step of training, and after each cell recorded; where
    packs train elsewhere, after each pack."""

    cells: int
    recorded: int
    """Cells with a result that counts, those of earlier runs among them."""
    failed: int
    pack: int
    """The pack in training, or just tried elsewhere; from 1."""
    packs: int
    news: CellResult | StackProgress | None
    """The cell just recorded, the step of training just taken, or None at the start of a pack, or its end."""


class Scheduler:
    """The packs of one run of a probe, known by their places in the list of all of the probe's packs."""

    def __init__(
        self,
        base: Base,
        placement: Placement,
        packs: Sequence[Pack],
        prefixes: Mapping[int, Sequence[EncodedFact]],
        journal: Journal,
        execution: Execution,
        *,
        shard: Shard | None = None,
        on_progress: Callable[[ProbeProgress], None] | None = None,
    ) -> None:
        """`prefixes` are the facts of each length in target tokens."""
        self.base, self.placement, self.packs, self.journal = base, placement, packs, journal
        self.execution, self.on_progress = execution, on_progress
        self.facts = [prefixes[pack[0].length] for pack in packs]
        self.costs = [_cost(facts, pack) for facts, pack in zip(self.facts, packs, strict=True)]
        self.own = list(range(len(packs))) if shard is None else shard.share(self.costs)
        self.keys = {cell.key for number in self.own for cell in packs[number]}
        """Of all cells of this run."""
        tried = {result.cell.key: result.status for result in journal.results() if result.cell.key in self.keys}
        self.failed = {key for key, status in tried.items() if status == "failed"}
        self.recorded = tried.keys() - self.failed

    def run(self, engine: Engine, resources: Resources, choose: Choose | None = None) -> None:
        """Train what is missing; on the way out of an interrupt, the workers end.

        Raises JournalError if nothing can be recorded any more, ConfigError if a worker found another model.
        """
        numbers = [number for number in self.own if self._missing(number)]
        with _terminable():
            if engine.in_process:
                self._try_all(engine, resources, self._train_here, {number: number for number in numbers}, choose)
            elif numbers:
                by_cost = longest_first([self.costs[number] for number in numbers])
                specs = {self._spec(numbers[place], resources): numbers[place] for place in by_cost}
                run_there = partial(run_pack, root=str(self.journal.root.resolve()))
                self._try_all(engine, resources, run_there, specs, choose)

    def _try_all(
        self,
        engine: Engine,
        resources: Resources,
        fn: Callable[[Spec], object],
        numbers: Mapping[Spec, int],
        choose: Choose | None,
    ) -> None:
        waiting, tries = deque(numbers), Counter[int]()
        with closing(engine.run(fn, waiting, resources)) as outcomes:
            while True:
                if choose is not None:
                    self._arrange(waiting, numbers, choose)
                outcome = next(outcomes, None)
                if outcome is None:
                    return
                number = numbers[outcome.spec]
                tries[number] += 1
                self._note(number, outcome.error)
                if not engine.in_process:
                    self._tell(number, None)
                if self._missing(number) and tries[number] <= RETRIES:
                    waiting.append(outcome.spec)

    def _arrange(self, waiting: deque[Spec], numbers: Mapping[Spec, int], choose: Choose) -> None:
        """The chosen pack comes to the front; if there is none, nothing waits any more."""
        offered = {self.packs[numbers[spec]]: spec for spec in waiting}
        results = [result for result in self.journal.results() if result.cell.key in self.keys]
        chosen = choose(list(offered), results) if offered else None
        if chosen is None:
            waiting.clear()
        else:
            waiting.remove(offered[chosen])
            waiting.appendleft(offered[chosen])

    def _note(self, number: int, error: Exception | None) -> None:
        """Record what the pack itself could not: that its worker died, or never got as far as the cells."""
        if isinstance(error, JournalError | ConfigError):  # it would strike every pack
            raise error
        missing = self._missing(number)
        if error is not None:
            for cell in missing:
                self.journal.publish(unmeasured(cell, self.placement, len(self.facts[number]), reason(error)))
        for cell in self.packs[number]:
            self._count(cell, done=cell not in missing)

    def _missing(self, number: int) -> list[Cell]:
        return [cell for cell in self.packs[number] if not self.journal.holds(cell.key)]

    def _spec(self, number: int, resources: Resources) -> str:
        kept = self.execution.prefix_cache
        spec = PackSpec(
            model=reloadable(self.base),
            dtype="auto" if getattr(self.base.model, "is_quantized", False) else self.base.dtype,
            device="cuda" if resources.gpus else self.base.device,
            threads=resources.cpus,
            cells=self.packs[number],
            facts=tuple(self.facts[number]),
            execution=replace(self.execution, prefix_cache=kept and str(Path(kept).resolve())),
        )
        return spec.to_json()

    def _train_here(self, number: int) -> None:
        news = partial(self._tell, number)
        news(None)
        facts, pack = self.facts[number], self.packs[number]
        train_pack(self.base, facts, self.placement, pack, self.journal, execution=self.execution, on_news=news)

    def _tell(self, number: int, news: CellResult | StackProgress | None) -> None:
        if isinstance(news, CellResult):
            self._count(news.cell, done=news.status != "failed")
        if self.on_progress is not None:
            recorded, failed = len(self.recorded), len(self.failed)
            self.on_progress(ProbeProgress(len(self.keys), recorded, failed, number + 1, len(self.packs), news))

    def _count(self, cell: Cell, *, done: bool) -> None:
        (self.recorded if done else self.failed).add(cell.key)
        (self.failed if done else self.recorded).discard(cell.key)


def _cost(facts: Sequence[EncodedFact], pack: Pack) -> int:
    """Work of training a pack, in tokens that pass through the layers above the first adapted one: adapters x steps x
    rows of a step x tokens of a row. The parameters of those layers, which it is to be multiplied by, are the same for
    all packs of a probe."""
    train = pack[0].train
    rows = min(train.batch_size or len(facts), len(facts))
    return len(pack) * train.steps * rows * max(len(fact.ids) for fact in facts)


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM is a Ctrl-C, unless somebody has other plans for it: schedulers send it before they kill."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
