"""One ledger in Python: the verbs of `memlaw ledger`. Only those that need the model load torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from memlaw.core.config import UNTIL_RECALLED, Execution
from memlaw.core.facts import Fact, MemorySet
from memlaw.ledger import served, status, upkeep, view
from memlaw.ledger.diff import Diff, difference
from memlaw.ledger.gate import Terms
from memlaw.ledger.records import Audit, Change, Status, Version
from memlaw.ledger.review import Review, review
from memlaw.ledger.store import Store

if TYPE_CHECKING:
    from memlaw.data.load import Facts
    from memlaw.model.base import Base
    from memlaw.planning.library import KnownLaw
    from memlaw.training.result import StackProgress

StrPath = str | os.PathLike[str]


class CreateOptions(TypedDict, total=False):
    """Keywords of `create`, beside the fields of TrainConfig."""

    placement: str | None
    """Where the adapter sits, such as "down_proj@4"; by default the MLP's last module, two thirds up the stack."""
    texts: bool
    """Whether prompts and targets are kept as text; without, updates and audits ask for the originals."""
    eos: bool
    """Whether every target ends with end-of-sequence."""
    room: int | None
    """Target tokens that are to fit with probability 95%, in place of `rank`."""
    like: Facts | None
    """A sample of the facts to come, which says what a target token of `room` costs; by default random codes."""
    law: KnownLaw | None
    """The law that `room` is counted by; by default the published one, which is right only within a factor of 4."""


class UpdateOptions(TypedDict, total=False):
    """Keywords of `Ledger.update`."""

    originals: Facts | None
    """Facts that the ledger holds or has retracted, for a ledger that keeps no texts."""
    rank: int | None
    """A higher rank for the adapter that new facts go to."""
    auto_grow: bool
    """Give new facts that do not fit a higher rank or another adapter (default False)."""
    max_harm: float
    """Largest loss difference on neutral text, nats a token (default 0.1); math.inf for no bound."""
    allow_loss: int
    """Facts that may be lost (default 0)."""
    law: KnownLaw | None
    """Says how much more will fit (`version().room`); without, the room left stays unknown."""
    wait: float
    """Seconds to wait for another update (default 0)."""
    execution: Execution | None
    """What changes time and memory but not the result."""
    on_step: Callable[[StackProgress], None] | None
    """Called after every step."""


class AuditOptions(TypedDict, total=False):
    """Keywords of `Ledger.audit`."""

    adapter: StrPath | None
    """Directory of what is served, as `export` wrote it; by default the version's own."""
    originals: Facts | None
    """The facts, for a ledger that keeps no texts."""
    side_effects: bool
    """Measure what the adapter changes elsewhere as well (default False)."""


class Ledger:
    """A ledger on disk. Every method reads the files anew, and raises LedgerError if they are damaged or busy."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings = store.settings()
        """What all versions share."""

    def update(
        self,
        model: Any,
        tokenizer: Any,
        facts: Facts | None = None,
        *,
        retract: Sequence[str] = (),
        **options: Unpack[UpdateOptions],
    ) -> Version:
        """Add and change `facts`, retract the facts with the ids `retract`, and publish the result as a version.

        Facts with a prompt that is held change its target; facts that are not mentioned stay. `model` is left as it
        was. `options` are those of UpdateOptions: originals, rank, auto_grow, max_harm, allow_loss, law, wait,
        execution, on_step. Returns the current version if there is nothing to do.

        Raises GateError, and changes nothing, if a fact would not come back, a retracted one would, or the model would
        lose more than `max_harm`; DataError for a request that contradicts itself; LedgerError for another base and for
        two updates at once; TrainError if training diverged.
        """
        from memlaw.adapter.wrapper import base_of
        from memlaw.ledger.forecast import check_rank
        from memlaw.ledger.training import Watch
        from memlaw.ledger.update import Request, update
        from memlaw.planning.library import adapt_law

        law, choose = options.get("law"), None
        if law is not None:
            choose = partial(adapt_law, law)
        terms = Terms(options.get("max_harm", Terms.max_harm), options.get("allow_loss", Terms.allow_loss))
        rank = options.get("rank")
        check_rank(self.store.head().rank, rank)
        base = base_of(model, tokenizer)
        originals = _facts(base, options.get("originals"))
        grow = options.get("auto_grow", False)
        request = Request(_facts(base, facts), tuple(retract), originals, rank, grow, terms, choose)
        watch = Watch(options.get("execution") or Execution(), options.get("on_step"), options.get("wait", 0.0))
        return update(self.store, base, request, watch)

    def difference(self, facts: Facts | None = None, retract: Sequence[str] = ()) -> Change:
        """The ids that `update` would add, change and retract; nothing is trained. Raises DataError as it does.

        Chats and tasks need the model's tokenizer to be read: give them as a MemorySet.
        """
        from memlaw.data import read

        memory_set = facts if facts is None or isinstance(facts, MemorySet) else read(facts)
        return self.diff(() if memory_set is None else memory_set.facts, retract).change()

    def diff(self, facts: Sequence[Fact], retract: Sequence[str] = ()) -> Diff:
        """`difference`, with the facts and the records of what is held."""
        return difference(self.store.head(), facts, retract, self.settings.key)

    def audit(self, model: Any, tokenizer: Any, number: int | None = None, **options: Unpack[AuditOptions]) -> Audit:
        """Measure every fact of a version again, by default of the current one, and keep the result with the ledger.

        `options` are those of AuditOptions: adapter, originals, side_effects. Raises LedgerError, AdapterError.
        """
        from memlaw.adapter.wrapper import base_of
        from memlaw.ledger.audited import audit

        base, adapter = base_of(model, tokenizer), options.get("adapter")
        return audit(
            self.store,
            base,
            number,
            adapter=None if adapter is None else Path(adapter),
            originals=_facts(base, options.get("originals")),
            harm=options.get("side_effects", False),
        )

    def review(self, number: int | None = None, audits: Sequence[Audit] = ()) -> Review:
        """Which fact came back under which version up to `number`, and what each update cost older facts.

        Versions count as measured when they were published, or as one of `audits` found them.
        """
        return review(self.store, number, audits)

    def version(self, number: int | None = None) -> Version:
        """A version, by default the current one: its facts by id and hash, what it changed, and what that took."""
        return self.store.head() if number is None else self.store.version(number)

    def status(self) -> Status:
        """The current version in numbers, and what to do next."""
        return status.status(self.store)

    def log(self) -> view.Log:
        """All versions, and what each changed."""
        return view.log(self.store)

    def history(self, fact: str) -> tuple[view.Seen, ...]:
        """What became of the fact with this id, version by version."""
        return view.history(self.store, fact)

    def rollback(self, number: int) -> Version:
        """Make another version the current one; nothing is removed, and a later version can be made current again."""
        return self.store.move_head(number)

    def route(self, prompt: str) -> int | None:
        """The number of the adapter that brings back the fact of a prompt; None for a prompt of no fact."""
        return served.routes_of(self.store.head(), self.settings.key).of(prompt)

    def export(self, out: StrPath, number: int | None = None) -> Version:
        """Copy the adapters of a version, by default the current one, to `out`; returns the version.

        One adapter is copied to `out` itself; several become its folders 1, 2, ..., with routes.json beside them.
        """
        return served.export(self.store, out, number)

    def verify(self) -> upkeep.VerifyReport:
        """Check every file; changes nothing."""
        return upkeep.verify(self.store)


def open(path: StrPath) -> Ledger:  # noqa: A001 - memlaw.ledger.open, as gzip.open
    """The ledger in a directory. Raises LedgerError if there is none, or one that a later memlaw wrote."""
    return Ledger(Store(path))


def create(path: StrPath, model: Any, tokenizer: Any, *, rank: int | None = None, **options: Any) -> Ledger:
    """Make an empty ledger in a new or empty directory, for adapters of this model.

    Give `rank`, or `room`: target tokens that are to fit with probability 95%. `options` are those of CreateOptions
    (placement, texts, eos; room, like, law), fields of TrainConfig such as method="ot" or steps=500, and `config`, a
    TrainConfig that the fields change; by default the settings of `memlaw train`. All updates share them. Raises
    AdapterError, ConfigError, LedgerError; FitError for a law that cannot be used.
    """
    from memlaw.adapter.on_model import placement_on
    from memlaw.adapter.wrapper import base_of
    from memlaw.ledger.forecast import check_asked, sized
    from memlaw.ledger.update import NewLedger
    from memlaw.ledger.update import create as make
    from memlaw.planning.library import adapt_law, nearest

    room, like, law = (options.pop(name, None) for name in ("room", "like", "law"))
    check_asked(rank, room)
    shared = {name: options.pop(name) for name in CreateOptions.__annotations__ if name in options}
    config = replace(options.pop("config", None) or UNTIL_RECALLED, **options)
    store, base = Store(path), base_of(model, tokenizer)
    if rank is None:
        choose = partial(nearest, ()) if law is None else partial(adapt_law, law)
        where = placement_on(shared.get("placement"), base.model)
        rank = sized(base, room, where, choose, _facts(base, like), eos=shared.get("eos", True)).rank
    make(store, base, NewLedger(rank, config=config, **shared))
    return Ledger(store)


def _facts(base: Base, facts: Facts | None) -> tuple[Fact, ...]:
    from memlaw.data.load import memory_set_for

    return () if facts is None else memory_set_for(base, facts).facts
