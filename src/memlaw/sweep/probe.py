"""Run a probe: train and measure every cell that its directory does not hold yet."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlaw.core.errors import ConfigError, JournalError
from memlaw.core.facts import MemorySet
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.engines.base import Engine, Resources
from memlaw.sweep.grid import (
    TOKENS_PER_PACK,
    grid_cells,
    grid_identity,
    identity_of_base,
    identity_of_settings,
    prefixes_by_length,
    probe_about,
    probe_spec,
    tokens_per_pack,
)
from memlaw.sweep.journal import Journal
from memlaw.sweep.pack import LoadedPack, reload_name
from memlaw.sweep.scheduler import ProbeRun, Scheduler

if TYPE_CHECKING:
    from memlaw.model.base import Base


@dataclass(frozen=True)
class ProbeSummary:
    """The outcome of a probe."""

    out: str
    cells: int
    finished: int
    failed: int
    """Cells without a measurement: their training diverged, or something went wrong."""
    diverged: int
    """Those among `failed` that would diverge again; the next run retries the others."""
    warnings: tuple[str, ...] = ()


def probe(
    base: Base, memory_set: MemorySet, config: ProbeConfig, out: str | os.PathLike[str], run: ProbeRun | None = None
) -> ProbeSummary:
    """Train and measure every cell of the grid that the directory `out` does not hold yet.

    A grid with more ranks, lengths, methods or seeds than the one in `out` extends it; its finished cells stay.

    `run` says where, by whom and in which order; without it, packs train one after the other in this process. A pack
    may be trained more than once, since workers die and so do processes that schedule; the journal keeps the first
    result of a cell, so every result is there exactly once.

    Ctrl-C and SIGTERM end the workers. Every finished cell stays recorded, the pack in training resumes from its last
    checkpoint, and the table is rebuilt. Any other error fails the cells it struck: they are retried twice, then
    recorded as failed, while the others go on.

    Raises:
        ConfigError, DataError, AdapterError: the grid cannot be run; nothing was trained.
        JournalError: `out` belongs to another run, or can no longer be written.
    """
    from memlaw.adapter.on_model import placement_on
    from memlaw.data import target_tokens
    from memlaw.model.offload import evicted

    run = run or ProbeRun()
    _check_engine(run, base)
    placement = placement_on(config.placement, base.model)
    for rank in config.ranks:
        placement.check_rank(rank)
    requested = prefixes_by_length(base, memory_set, config.lengths)
    prefixes = {target_tokens(facts): facts for facts in requested.values()}
    cells = {cell.key: cell for cell in grid_cells(config, list(prefixes), base, memory_set, placement)}
    journal = Journal(out)
    longest = prefixes[max(prefixes)]
    there = journal.spec() if journal.claimed else None
    planned = there is not None and there.identity == grid_identity(list(cells.values()))
    tokens = TOKENS_PER_PACK if planned else tokens_per_pack(base, longest, placement, max(config.ranks))
    spec = journal.claim(probe_spec(list(cells.values()), tokens, probe_about(base, memory_set), there))
    packs = [tuple(cells[key] for key in keys) for keys in spec.packs]
    loaded = [LoadedPack(base, placement, prefixes[pack[0].length], pack) for pack in packs]
    scheduler = Scheduler(loaded, journal, run)
    try:
        with evicted(base, placement.first_layer, wanted=run.execution.evict_prefix and run.engine.in_process):
            scheduler.train(run.resources or _resources(run.engine, base))
    except BaseException:
        with suppress(JournalError):
            journal.write_table()
        raise
    journal.write_table()
    shortened = _shortened({length: target_tokens(facts) for length, facts in requested.items()})
    warnings = [sentence for sentence in (placement.caution, *shortened) if sentence]
    return _summary(journal, scheduler.keys, warnings)


def check_out(out: str | os.PathLike[str], config: ProbeConfig, base: Base | None = None) -> None:
    """Refuse what `probe` would refuse later, as far as the settings, and a base if it is loaded, tell.

    Raises JournalError if `out` belongs to another run, AdapterError for a rank or placement that the base cannot have.
    """
    known = identity_of_settings(config)
    if base is not None:
        from memlaw.adapter.on_model import placement_on

        placement = placement_on(config.placement, base.model)
        for rank in config.ranks:
            placement.check_rank(rank)
        known |= identity_of_base(base, placement)
    Journal(out).check_claimable(known)


def _check_engine(run: ProbeRun, base: Base) -> None:
    if run.engine.in_process:
        return
    reload_name(base)
    if run.chooser is not None:
        raise ConfigError(
            "A budget picks one pack after the other, which only works while packs train one by one in this process. "
            "Leave out the engine."
        )


def _resources(engine: Engine, base: Base) -> Resources:
    """What a pack takes by default: a GPU or one thread of a machine it shares, else every thread of this one."""
    import torch

    if engine.parallel:
        return Resources(gpus=float(torch.device(base.device).type == "cuda"))
    return Resources(cpus=torch.get_num_threads())


def _shortened(lengths: Mapping[int, int]) -> list[str]:
    """One sentence if requested lengths are not those of the cells."""
    pairs = [f"{requested} became {actual}" for requested, actual in lengths.items() if requested != actual]
    return [f"Facts are kept whole, so of the requested lengths {', '.join(pairs)}."] if pairs else []


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
