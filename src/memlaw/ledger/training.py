"""One adapter of an update, trained and measured, and whether the gate lets it pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import loaded, save
from memlaw.adapter.stack import AdapterStack
from memlaw.core.canonical import to_dict
from memlaw.core.config import Execution, TrainConfig
from memlaw.core.errors import TrainError
from memlaw.ledger.gate import Measured, Terms, objections
from memlaw.ledger.jobs import Job
from memlaw.ledger.measured import Bench, bench, measured
from memlaw.ledger.records import Adapter, Effort, Settings
from memlaw.ledger.texts import Texts
from memlaw.ledger.unwanted import with_floors
from memlaw.model.base import Base
from memlaw.training.result import StackProgress, Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

AGAIN = 2.0
"""How much stronger than at the end of the last update protection starts: the facts may have left room meanwhile."""

LEAST = 2.0**-20
"""Part of the configured protection with which every update starts at least: one that left no room for any, published
with losses, must not unprotect all that follow."""


@dataclass(frozen=True)
class Watch:
    """How an update runs: what changes its time and memory, not its result."""

    execution: Execution = field(default_factory=Execution)
    on_step: Callable[[StackProgress], None] | None = None
    wait: float = 0.0
    """Seconds to wait for another writer."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of an adapter."""

    job: Job
    on: Bench
    result: Measured
    trained: Trained | None
    """None for an adapter that has nothing to bring back, and so is no more."""
    effort: Effort | None
    objections: tuple[str, ...]
    """Why it may not be published, as sentences."""

    @property
    def lost(self) -> int:
        """Facts that are not certified."""
        return len(self.result.uncertain())


class Trainer:
    """Trains the adapters of one ledger, on a base to which nothing is attached."""

    def __init__(self, base: Base, settings: Settings, texts: Texts, watch: Watch) -> None:
        self.base, self.settings, self.texts, self.watch = base, settings, texts, watch
        self.where = placement_on(settings.placement, base.model)

    def outcome(self, job: Job, folder: Path | None, terms: Terms) -> Outcome:
        """The adapter in `folder` (None: a new one) trained on what it is to hold, and measured.

        Going on is cheaper; a new adapter costs the model less, and forgets what is retracted: so one that the gate
        would refuse is trained anew first. Raises TrainError if training diverged.
        """
        on = self._bench(job)
        if not on.wanted:
            return Outcome(job, on, measured(self.base, on, nullcontext), None, None, ())
        starts = [None] if folder is None else [loaded(self.base, folder), None]
        efforts: list[Effort] = []
        for start in starts:
            trained = self._trained(job, on, start)
            efforts.append(_effort(trained, on))
            result = measured(self.base, on, partial(trained.attached, self.base.model))
            found = objections(result, terms)
            if not found:
                break
        return Outcome(job, on, result, trained, together(efforts), found)

    def save(self, trained: Trained, folder: Path) -> None:
        """Write an adapter in PEFT's format."""
        details = {"train": to_dict(replace(trained.config, steps=max(1, trained.steps)))}
        save(trained.stack, self.where, self.base, folder, details=details)

    def _bench(self, job: Job) -> Bench:
        kept, dropped = self.texts.of(job.kept), self.texts.of((*job.dropped, *job.forbidden))
        return bench(self.base, (*kept, *job.train), dropped, self.settings.eos, harm=True)

    def _trained(self, job: Job, on: Bench, start: AdapterStack | None) -> Trained:
        """The adapter `start` trained on, or a new one."""
        rows = (*on.wanted, *with_floors(on.unwanted, [one.tokens for one in on.before], on.wanted))
        config = next_config(self.settings, job.before, anew=start is None)
        run = Run(job.rank, self.where, config, start=start)
        execution, on_step = self.watch.execution, self.watch.on_step
        (trained,) = train_stack(self.base, rows, [run], execution=execution, on_step=on_step)
        if trained.status != "finished":
            raise TrainError(f"Training {trained.status}: {trained.message}. Nothing was changed.")
        return trained


def next_config(settings: Settings, before: Adapter | None, *, anew: bool = False) -> TrainConfig:
    """The settings of the ledger; from an adapter's second training on, with the rate of the one `before` and, unless
    it starts anew, its protection.

    The factor before x A B is the ledger's at every rank, so that a higher rank changes no function.
    """
    config = replace(settings.train, scale=settings.scale, scaling="constant")
    if before is None or not before.learning_rate:
        return config
    again = max(AGAIN * before.protection, LEAST * config.protect)
    protect = config.protect if anew else min(config.protect, again)
    return replace(config, learning_rate=before.learning_rate, protect=protect)


def together(efforts: Sequence[Effort]) -> Effort:
    """What several trainings took, and how the last one went."""
    return replace(
        efforts[-1],
        steps=sum(effort.steps for effort in efforts),
        tokens_forwarded=sum(effort.tokens_forwarded for effort in efforts),
        seconds=math.fsum(effort.seconds for effort in efforts),
    )


def _effort(trained: Trained, on: Bench) -> Effort:
    return Effort(
        steps=trained.steps,
        tokens_forwarded=trained.tokens_forwarded + 2 * on.tokens,  # measured: teacher-forced, and decoded
        seconds=trained.seconds,
        loss_init=trained.loss_init,
        loss_final=trained.loss_final,
    )
