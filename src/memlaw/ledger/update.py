"""An update: what changes is trained, everything is measured, and what passes the gate becomes the next version."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from memlaw.adapter.on_model import placement_on
from memlaw.core.config import UNTIL_RECALLED, TrainConfig
from memlaw.core.errors import GateError
from memlaw.core.facts import Fact
from memlaw.data import target_tokens
from memlaw.ledger import view
from memlaw.ledger.diff import Diff, difference
from memlaw.ledger.forecast import Forecaster, Grow, Open, cheaper, check_rank, seen_by
from memlaw.ledger.gate import Terms, verdict
from memlaw.ledger.jobs import Job, Sharing
from memlaw.ledger.measured import Bench, check_base, encoded, held_as, retracted_as
from memlaw.ledger.records import (
    Adapter,
    Effort,
    Held,
    Pair,
    Retracted,
    Room,
    Settings,
    Version,
    drop,
    hold,
    now,
    pair_of,
)
from memlaw.ledger.store import Store
from memlaw.ledger.training import Outcome, Trainer, Watch, together
from memlaw.model.base import Base
from memlaw.model.tokenizer import tokenizer_fingerprint
from memlaw.planning.library import LawChooser


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
    """A higher rank for the adapter that new facts go to: what it holds is kept. None: as it is."""
    auto_grow: bool = False
    """Whether new facts that do not fit get room: a higher rank or another adapter."""
    terms: Terms = field(default_factory=Terms)
    choose: LawChooser | None = None
    """The law that says how much fits; None: the room left stays unknown."""


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
    published; DataError for a contradictory request; ConfigError for a lower rank; LedgerError; TrainError if
    training diverged.
    """
    watch = watch or Watch()
    settings = store.settings()
    check_base(base, settings)
    with store.locked(watch.wait):
        head = store.head()
        diff = difference(head, request.facts, request.retract, settings.key)
        rank = check_rank(head.rank, request.rank)
        if diff.empty and rank == head.rank:
            return head
        return _Update(store, base, head, diff, replace(request, rank=rank), watch).run()


class _Update:
    def __init__(self, store: Store, base: Base, head: Version, diff: Diff, request: Request, watch: Watch) -> None:
        self.store, self.base, self.head, self.diff, self.request = store, base, head, diff, request
        self.rank = request.rank or head.rank
        self.number = store.next_number()
        self.key = store.settings().key
        self.sharing = Sharing(head, diff, self.key, self.rank)
        texts = store.texts(head, (*request.originals, *request.facts))
        self.trainer = Trainer(base, store.settings(), texts, watch)
        self.trainer.where.check_rank(self.rank)
        self.idle: list[Job] = []
        self.done: list[Outcome] = []
        self.efforts: list[Effort] = []
        """Of all trainings, also of those that the gate refused."""

    def run(self) -> Version:
        folders = self.store.adapters(self.head.number)
        waiting = deque(self.sharing.numbers())
        while waiting:
            job = self.sharing.job(waiting.popleft())
            if job.idle:
                self.idle.append(job)
            else:
                waiting.extendleft(reversed(self._train(job, folders.get(job.number))))
        return self._publish()

    def _train(self, job: Job, folder: Path | None) -> tuple[int, ...]:
        """Train an adapter. Returns the adapters to go on with if it did not fit: itself with less, and another one.

        Raises GateError if that is no way out.
        """
        growth = self._growth(job)
        if isinstance(growth, Grow):
            job = self.sharing.grow(job, growth.rank)
        elif growth is not None:
            return self.sharing.spread(job)
        spent = sum(outcome.lost for outcome in self.done)
        terms = replace(self.request.terms, allow_loss=self.request.terms.allow_loss - spent)
        outcome = self.trainer.outcome(job, folder, terms)
        self.efforts += [] if outcome.effort is None else [outcome.effort]
        if not outcome.objections:
            self.done.append(outcome)
            return ()
        if self.request.auto_grow and job.divisible:
            return self.sharing.spread(job)
        which = f" Adapter {job.number}:" if self.sharing.last > 1 else ""
        raise GateError(
            f"Version {self.number} was not published.{which} {' '.join(outcome.objections)} Nothing was changed."
        )

    def _growth(self, job: Job) -> Grow | Open | None:
        """How to make room for what a job has to learn, as far as can be told before; None: it rather fits as it is."""
        if not (self.request.auto_grow and job.train):
            return None
        seen = seen_by(view.fitted(self.store), job.before, self.request.terms.max_harm)
        rows = encoded(self.base, job.train, self.trainer.settings.eos)
        forecaster = Forecaster(self.base, rows, self.trainer.where, self.request.choose, seen)
        new, held = target_tokens(rows), job.tokens_kept
        if forecaster.likely(job.rank, held + new):
            return None
        way = cheaper(forecaster, job.rank, held, new, self.trainer.where.max_rank)
        if isinstance(way, Grow) and way.rank > job.rank:
            return way
        return Open(self.rank) if job.divisible else None

    def _publish(self) -> Version:
        held: dict[Pair, Held] = {}
        retracted: dict[Pair, Retracted] = {old.pair: old for old in self.diff.forbidden}
        for job in self.idle:
            held |= {fact.pair: fact for fact in job.kept}
        for one in self.done:
            held |= {fact.pair: fact for fact in self._held(one)}
            retracted |= {old.pair: old for old in self._retracted(one)}
        adapters = [*map(_left_alone, self.idle), *map(self._adapter, self.done)]
        facts = tuple(held[pair] for pair in self._pairs())
        version = Version(
            number=self.number,
            parent=self.head.number,
            held=facts,
            retracted=tuple(map(retracted.__getitem__, self._forbidden())),
            change=self.diff.change(fact.id for fact in facts if fact.verdict == "lost"),
            rank=self.sharing.last_job().rank,
            created=now(),
            effort=together(self.efforts) if self.efforts else None,
            adapters=tuple(sorted((one for one in adapters if one is not None), key=lambda one: one.number)),
        )
        trained = {one.job.number: partial(self.trainer.save, one.trained) for one in self.done if one.trained}
        return self.store.publish(version, trained=trained, texts=self.diff.to_train)

    def _pairs(self) -> Iterator[Pair]:
        """What the next version is to hold, in its order."""
        yield from (fact.pair for fact in self.diff.unchanged)
        yield from (pair_of(fact, self.key) for fact in self.diff.to_train)

    def _forbidden(self) -> Iterator[Pair]:
        """What must not come back under the next version, in its order."""
        yield from (fact.pair for fact in self.diff.dropped)
        yield from (old.pair for old in self.diff.forbidden)

    def _adapter(self, outcome: Outcome) -> Adapter | None:
        """The record of an adapter; None if nothing is left in it."""
        job, trained, report = outcome.job, outcome.trained, outcome.result.report
        if trained is None or report is None:
            return None
        adapter = Adapter(
            number=job.number,
            rank=job.rank,
            trained=self.number,
            tokens=sum(item.length for item in report.items if verdict(item) != "lost"),
            learning_rate=trained.config.learning_rate,
            protection=trained.protection,
            side_effects=outcome.result.side_effects,
            rounding=report.rounding,
        )
        return replace(adapter, room=self._room(adapter, outcome.on))

    def _room(self, adapter: Adapter, on: Bench) -> Room | None:
        """What an adapter can take besides, by the law, what adapters have held, and what it costs; None without a
        law."""
        seen = seen_by([*view.fitted(self.store), (adapter.rank, adapter.tokens)], adapter, self.request.terms.max_harm)
        forecaster = Forecaster(self.base, on.wanted, self.trainer.where, self.request.choose, seen)
        return forecaster.room(adapter.rank, adapter.tokens)

    def _held(self, outcome: Outcome) -> Iterator[Held]:
        items = {} if outcome.result.report is None else {item.id: item for item in outcome.result.report.items}
        for fact in outcome.job.kept:
            yield held_as(fact, items[fact.id])
        for new in outcome.job.train:
            item = items[new.id]
            record = hold(
                new, self.key, tokens=item.length, margin=item.margin, verdict=verdict(item), since=self.number
            )
            yield replace(record, adapter=outcome.job.number)

    def _retracted(self, outcome: Outcome) -> Iterator[Retracted]:
        dropped = [drop(old, self.number, log_p=0.0, log_p_base=0.0) for old in outcome.job.dropped]
        records = (*dropped, *outcome.job.forbidden)
        yield from (retracted_as(*each) for each in zip(records, outcome.result.gone, strict=True))


def _left_alone(job: Job) -> Adapter | None:
    """The record of an adapter that an update did not train; None if all of its facts went to others."""
    if job.before is None or not job.kept:
        return None
    return replace(job.before, tokens=sum(fact.tokens for fact in job.kept if fact.verdict != "lost"))
