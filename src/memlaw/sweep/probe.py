"""Run a probe: train and measure every cell that its directory does not hold yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, JournalError
from memlaw.core.facts import MemorySet
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.engines.base import Engine, Inline, Resources
from memlaw.sweep.engines.shards import Shard
from memlaw.sweep.grid import TOKENS_PER_PACK, grid_cells, prefixes_of, probe_about, probe_spec, tokens_per_pack
from memlaw.sweep.journal import Journal
from memlaw.sweep.pack import reloadable
from memlaw.sweep.scheduler import Choose, ProbeProgress, Scheduler

if TYPE_CHECKING:
    from memlaw.model.base import Base


@dataclass(frozen=True)
class ProbeSummary:
    """What a probe came to."""

    out: str
    cells: int
    finished: int
    failed: int
    """Cells without a measurement: their training diverged, or something went wrong."""
    diverged: int
    """Those among `failed` that would diverge again; the others are tried again by the next run."""
    warnings: tuple[str, ...] = ()


def probe(
    base: Base,
    memory_set: MemorySet,
    config: ProbeConfig,
    out: str | os.PathLike[str],
    *,
    execution: Execution | None = None,
    on_progress: Callable[[ProbeProgress], None] | None = None,
    engine: Engine | None = None,
    resources: Resources | None = None,
    shard: Shard | None = None,
    choose: Choose | None = None,
) -> ProbeSummary:
    """Train and measure every cell of the grid that the directory `out` does not hold yet.

    Packs are trained here one after the other, or where `engine` says, each with `resources`; with a `shard`, only
    those that fall to it. `choose` decides before each pack which comes next, or that it is enough. A pack may be
    trained more than once, whatever the engine, since workers die and so do drivers; the journal takes the first result
    of a cell, so every result is there exactly once.

    Ctrl-C or SIGTERM ends the workers and leaves every finished cell recorded, a pack in training to be gone on with
    from its last checkpoint, and the table rebuilt. Any other error costs the cells it struck: they are tried again
    twice and then stay recorded as failed, while the rest goes on. Raises ConfigError, DataError or AdapterError,
    before any training, for what cannot be run; JournalError if `out` belongs to another run or can no longer be
    written.
    """
    from memlaw.adapter.on_model import placement_on
    from memlaw.data import target_tokens
    from memlaw.model.offload import evicted

    engine = engine or Inline()
    _check_engine(engine, base, choose)
    placement = placement_on(config.placement, base.model)
    for rank in config.ranks:
        placement.check_rank(rank)
    asked = prefixes_of(base, memory_set, config.lengths)
    prefixes = {target_tokens(facts): facts for facts in asked.values()}
    cells = {cell.key: cell for cell in grid_cells(config, list(prefixes), base, memory_set, placement)}
    journal = Journal(out)
    longest = prefixes[max(prefixes)]
    room = TOKENS_PER_PACK if journal.claimed else tokens_per_pack(base, longest, placement, max(config.ranks))
    spec = journal.claim(probe_spec(list(cells.values()), room, about=probe_about(base, memory_set)))
    packs = [tuple(cells[key] for key in keys) for keys in spec.packs]
    execution = execution or Execution()
    driver = Scheduler(base, placement, packs, prefixes, journal, execution, shard=shard, on_progress=on_progress)
    try:
        with evicted(base, placement.first_layer, wanted=execution.evict_prefix and engine.in_process):
            driver.run(engine, resources or _resources(engine, base), choose)
    except BaseException:
        with suppress(JournalError):
            journal.write_table()
        raise
    journal.write_table()
    shortened = _shortened({length: target_tokens(facts) for length, facts in asked.items()})
    said = [sentence for sentence in (placement.caution, *shortened) if sentence]
    return _summary(journal, driver.keys, warnings=said)


def _check_engine(engine: Engine, base: Base, choose: Choose | None) -> None:
    if engine.in_process:
        return
    reloadable(base)
    if choose is not None:
        raise ConfigError(
            "Which pack comes next can only be chosen where packs are trained one after the other in this process: "
            "leave out the engine."
        )


def _resources(engine: Engine, base: Base) -> Resources:
    """What a pack takes unless told: what it would here, or its share of a machine with others."""
    import torch

    if engine.parallel:
        return Resources(gpus=float(torch.device(base.device).type == "cuda"))
    return Resources(cpus=torch.get_num_threads())


def _shortened(lengths: Mapping[int, int]) -> list[str]:
    """One sentence if lengths asked for are not those of the cells."""
    pairs = [f"{asked} became {actual}" for asked, actual in lengths.items() if asked != actual]
    return [f"Facts are kept whole, so of the lengths asked for {', '.join(pairs)}."] if pairs else []


def _summary(journal: Journal, keys: Collection[str], warnings: Sequence[str]) -> ProbeSummary:
    states = [result.status for result in journal.results() if result.cell.key in keys]
    finished, diverged = states.count("finished"), states.count("diverged")
    return ProbeSummary(
        out=str(journal.root),
        cells=len(keys),
        finished=finished,
        failed=len(states) - finished,
        diverged=diverged,
        warnings=(*warnings, *dict.fromkeys(journal.findings)),
    )
