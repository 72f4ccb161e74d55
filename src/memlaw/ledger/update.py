"""An update: what changes is trained, everything is measured, and what passes the gate becomes the next version."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import loaded, save
from memlaw.adapter.stack import AdapterStack
from memlaw.core.canonical import to_dict
from memlaw.core.config import UNTIL_RECALLED, Execution, TrainConfig
from memlaw.core.errors import FitError, GateError, LedgerError, TrainError
from memlaw.core.facts import Fact
from memlaw.ledger import view
from memlaw.ledger.diff import Diff, difference
from memlaw.ledger.gate import Measured, Terms, objections, verdict
from memlaw.ledger.measured import Bench, bench, check_base, held_as, measured, retracted_as
from memlaw.ledger.records import Effort, Held, Retracted, Room, Settings, Version, drop, hold, now
from memlaw.ledger.room import CapacityBelief
from memlaw.ledger.store import Store
from memlaw.ledger.unwanted import Gone, with_floors
from memlaw.model.base import Base
from memlaw.model.tokenizer import tokenizer_fingerprint
from memlaw.planning.for_facts import plan_for
from memlaw.planning.library import LawChooser
from memlaw.planning.request import PlanRequest
from memlaw.training.result import StackProgress, Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

AGAIN = 2.0
"""How much stronger than at the end of the last update protection starts: the facts may have left room meanwhile."""

LEAST = 2.0**-20
"""Part of the configured protection with which every update starts at least: one that left no room for any, published
with losses, must not unprotect all that follow."""


@dataclass(frozen=True)
class Request:
    """What an update is to do."""

    facts: tuple[Fact, ...] = ()
    """New and changed facts; those that are held already change nothing."""
    retract: tuple[str, ...] = ()
    """Ids of facts that must no longer come back."""
    originals: tuple[Fact, ...] = ()
    """Facts that are held or retracted, for a ledger that keeps no texts."""
    rank: int | None = None
    """A higher rank to go on with: what the adapter holds is kept. None: as it is."""
    terms: Terms = field(default_factory=Terms)
    choose: LawChooser | None = None
    """The law that says how much fits; None: the room left stays unknown."""


@dataclass(frozen=True)
class Watch:
    """How an update runs: what changes its time and memory, not its result."""

    execution: Execution = field(default_factory=Execution)
    on_step: Callable[[StackProgress], None] | None = None
    wait: float = 0.0
    """Seconds to wait for another writer."""


@dataclass(frozen=True)
class NewLedger:
    """What all versions of a new ledger share."""

    rank: int
    """Of the first version; an update may raise it."""
    placement: str | None = None
    """Where the adapter sits, such as "down_proj@4"; None: memlaw's default."""
    config: TrainConfig = UNTIL_RECALLED
    eos: bool = True
    """Whether every target ends with end-of-sequence."""
    texts: bool = True
    """Whether prompts and targets are kept as text; without, updates ask for the originals that they need."""


def create(store: Store, base: Base, new: NewLedger) -> Version:
    """Make an empty ledger for adapters of this base. Raises LedgerError, AdapterError."""
    where = placement_on(new.placement, base.model)
    where.check_rank(new.rank)
    settings = Settings(
        model=base.name,
        base=base.fingerprint,
        tokenizer=tokenizer_fingerprint(base.tokenizer),
        placement=str(where),
        rank=new.rank,
        scale=new.config.factor(new.rank),
        train=new.config,
        eos=new.eos,
        texts=new.texts,
        key=secrets.token_hex(32),
    )
    return store.create(settings)


def update(store: Store, base: Base, request: Request, watch: Watch | None = None) -> Version:
    """Make the next version of a ledger; the current one stays if anything fails or the gate objects.

    A request that changes nothing returns the current version. Raises GateError, which says why the update may not be
    published; DataError for a contradictory request; LedgerError, also for a lower rank; TrainError if training
    diverged.
    """
    watch = watch or Watch()
    settings = store.settings()
    check_base(base, settings)
    with store.locked(watch.wait):
        head = store.head()
        diff = difference(head, request.facts, request.retract, settings.key)
        rank = _rank(head, request.rank)
        if diff.empty and rank == head.rank:
            return head
        return _Update(store, base, head, diff, replace(request, rank=rank), watch).run()


def _rank(head: Version, asked: int | None) -> int:
    """The rank of the next version."""
    if asked is not None and asked < head.rank:
        raise LedgerError(
            f"Version {head.number} has rank {head.rank}, and an update cannot lower it to {asked}: what the adapter "
            "holds would not fit into the lower rank as it is. Nothing was changed. Leave --rank out, or make a new "
            f"ledger of rank {asked}."
        )
    return asked or head.rank


class _Update:
    def __init__(self, store: Store, base: Base, head: Version, diff: Diff, request: Request, watch: Watch) -> None:
        self.store, self.base, self.head, self.diff, self.request, self.watch = store, base, head, diff, request, watch
        self.settings = store.settings()
        self.rank = request.rank or head.rank
        self.where = placement_on(self.settings.placement, base.model)
        self.number = store.next_number()

    def run(self) -> Version:
        self.where.check_rank(self.rank)
        texts = self.store.texts(self.head, (*self.request.originals, *self.request.facts))
        kept, dropped = texts.of(self.diff.unchanged), texts.of((*self.diff.dropped, *self.diff.forbidden))
        wanted = (*kept, *self.diff.to_train)
        on = bench(self.base, wanted, dropped, self.settings.eos, harm=True)
        if not wanted:
            return self._publish(None, measured(self.base, on, nullcontext), on, None)
        folder = self.store.adapter(self.head.number)
        starts = [None] if folder is None else [loaded(self.base, folder), None]
        efforts: list[Effort] = []
        for start in starts:  # going on is cheaper; a new adapter costs the model less, and forgets what is retracted
            trained = self._trained(on, start)
            efforts.append(_effort(trained, on))
            result = measured(self.base, on, partial(trained.attached, self.base.model))
            found = objections(result, self.request.terms)
            if not found:
                return self._publish(trained, result, on, _together(efforts))
        raise GateError(f"Version {self.number} was not published. {' '.join(found)} Nothing was changed.")

    def _trained(self, on: Bench, start: AdapterStack | None) -> Trained:
        """The adapter `start` trained on, or a new one."""
        rows = (*on.wanted, *with_floors(on.unwanted, [one.tokens for one in on.before], on.wanted))
        config = _config(self.settings, self.head.effort, anew=start is None)
        run = Run(self.rank, self.where, config, start=start)
        execution, on_step = self.watch.execution, self.watch.on_step
        (trained,) = train_stack(self.base, rows, [run], execution=execution, on_step=on_step)
        if trained.status != "finished":
            raise TrainError(f"Training {trained.status}: {trained.message}. Nothing was changed.")
        return trained

    def _publish(self, trained: Trained | None, result: Measured, on: Bench, effort: Effort | None) -> Version:
        held = tuple(self._held(result))
        version = Version(
            number=self.number,
            parent=self.head.number,
            held=held,
            retracted=tuple(self._retracted(result.gone)),
            change=self.diff.change(fact.id for fact in held if fact.verdict == "lost"),
            rank=self.rank,
            created=now(),
            effort=effort,
            side_effects=result.side_effects,
            room=self._room(result, on),
            rounding=None if result.report is None else result.report.rounding,
        )
        adapter = None if trained is None else partial(self._save, trained)
        return self.store.publish(version, adapter=adapter, texts=self.diff.to_train)

    def _save(self, trained: Trained, folder: Path) -> None:
        details = {"train": to_dict(replace(trained.config, steps=max(1, trained.steps)))}
        save(trained.stack, self.where, self.base, folder, details=details)

    def _room(self, result: Measured, on: Bench) -> Room | None:
        """What still fits, by the law and by what the versions of this rank have held; None without a law."""
        if self.request.choose is None or result.report is None:
            return None
        request = PlanRequest(rank=self.rank)
        try:
            answer = plan_for(self.base, on.wanted, self.where, self.request.choose, request=request)
        except FitError:  # the law cannot be used here: nothing is known
            return None
        if answer.capacity is None:
            return None
        held = sum(item.length for item in result.report.items if item.certified)
        before = [entry.tokens for entry in view.log(self.store).entries if entry.rank <= self.rank]
        return CapacityBelief.from_law(answer.capacity).seen([held, *before]).room(held)

    def _held(self, result: Measured) -> Iterator[Held]:
        items = {} if result.report is None else {item.id: item for item in result.report.items}
        for fact in self.diff.unchanged:
            yield held_as(fact, items[fact.id])
        for new in self.diff.to_train:
            item = items[new.id]
            yield hold(
                new,
                self.settings.key,
                tokens=item.length,
                margin=item.margin,
                verdict=verdict(item),
                since=self.number,
            )

    def _retracted(self, gone: Sequence[Gone]) -> Iterator[Retracted]:
        dropped = [drop(old, self.number, log_p=0.0, log_p_base=0.0) for old in self.diff.dropped]
        for record, one in zip((*dropped, *self.diff.forbidden), gone, strict=True):
            yield retracted_as(record, one)


def _config(settings: Settings, before: Effort | None, *, anew: bool = False) -> TrainConfig:
    """The settings of the ledger; from its second training on, with the rate of the one `before` and, unless it starts
    anew, its protection.

    The factor before x A B is the ledger's at every rank, so that a higher rank changes no function.
    """
    config = replace(settings.train, scale=settings.scale, scaling="constant")
    if before is None or not before.learning_rate:
        return config
    again = max(AGAIN * before.protection, LEAST * config.protect)
    protect = config.protect if anew else min(config.protect, again)
    return replace(config, learning_rate=before.learning_rate, protect=protect)


def _together(efforts: Sequence[Effort]) -> Effort:
    """All trainings of an update: what they took together, and how the last one went."""
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
        learning_rate=trained.config.learning_rate,
        protection=trained.protection,
    )
