"""Measuring a version on its base: what comes back, what must not, and what it costs the model elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from memlaw.core.errors import LedgerError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.core.recall import RecordRecall
from memlaw.data import encode
from memlaw.diagnosis.measure import measure
from memlaw.diagnosis.side_effects import Alone, alone, side_effects, yardstick
from memlaw.ledger.gate import Measured, verdict
from memlaw.ledger.records import Held, Retracted, Settings
from memlaw.ledger.unwanted import Gone, judged, shared_tokens
from memlaw.model.base import Base
from memlaw.model.tokenizer import tokenizer_fingerprint


@dataclass(frozen=True, eq=False)
class Bench:
    """What a version is measured with, and the base alone on it."""

    wanted: tuple[EncodedFact, ...]
    unwanted: tuple[EncodedFact, ...]
    before: tuple[RecordRecall, ...]
    """The base alone on `unwanted`."""
    alone: Alone | None
    """The base alone on neutral text; None if side effects are not measured, or there is nothing to recall."""

    @property
    def tokens(self) -> int:
        """Tokens of one pass over everything to recall or to forget."""
        return sum(len(fact.ids) for fact in (*self.wanted, *self.unwanted))


def check_base(base: Base, settings: Settings) -> None:
    """Raise LedgerError unless this is the base, and the tokenizer, that the ledger was made for."""
    same = base.fingerprint == settings.base
    if same and tokenizer_fingerprint(base.tokenizer) == settings.tokenizer:
        return
    what = "tokenizer" if same else "base model"
    raise LedgerError(
        f"The ledger was made for another {what}: its adapters belong to {settings.model}, and {base.name} is not the "
        f"same. Nothing was changed. Give the model it was made for, or make a new ledger for {base.name}."
    )


def bench(base: Base, wanted: Sequence[Fact], unwanted: Sequence[Fact], eos: bool, *, harm: bool) -> Bench:
    """Encode the facts, and run the base alone, to which nothing may be attached. Raises DataError."""
    stored = encoded(base, wanted, eos)
    dropped = tuple(row for fact in unwanted for row in encoded(base, [fact], eos))  # a prompt may have had several
    before = measure(base, dropped, decode=True).items if dropped else ()
    asked = MemorySet(tuple(wanted), eos, "the ledger")
    return Bench(stored, dropped, before, alone(base, yardstick(base, asked)) if harm and wanted else None)


def measured(base: Base, on: Bench, attached: Callable[[], AbstractContextManager[object]]) -> Measured:
    """Everything the gate asks of an adapter, which `attached` adds to the base."""
    with attached():
        report = measure(base, on.wanted, decode=True) if on.wanted else None
        after = measure(base, on.unwanted, decode=True).items if on.unwanted else ()
        effects = None if on.alone is None else side_effects(base, on.alone)
    shared = shared_tokens(on.unwanted, on.wanted)
    gone = tuple(judged(*each) for each in zip(after, on.before, shared, strict=True))
    return Measured(report, gone, effects)


def held_as(fact: Held, item: RecordRecall) -> Held:
    """The record of a fact as it was measured now."""
    return replace(fact, margin=item.margin, verdict=verdict(item))


def retracted_as(old: Retracted, now: Gone) -> Retracted:
    """The record of a target that must not come back as it was measured now."""
    return replace(old, log_p=now.log_p, log_p_base=now.log_p_base)


def encoded(base: Base, facts: Sequence[Fact], eos: bool) -> tuple[EncodedFact, ...]:
    """Facts as token ids of the base. Raises DataError."""
    if not facts:
        return ()
    return encode(MemorySet(tuple(facts), eos, "the ledger"), base.tokenizer, context=base.context, stops=base.stops)
