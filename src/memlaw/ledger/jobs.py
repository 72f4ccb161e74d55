"""What each adapter of a ledger has to learn and to lose in an update. Pure.

A fact stays in the adapter that holds it, also when it changes; what is new goes to the last adapter. An update leaves
an adapter alone, and so need not rehearse what it holds, if nothing of it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memlaw.core.facts import Fact
from memlaw.ledger.diff import Diff
from memlaw.ledger.records import Adapter, Held, Version


@dataclass(frozen=True)
class Job:
    """One adapter beside what it is to become."""

    number: int
    rank: int
    before: Adapter | None
    """Its record in the version that the update starts from; None for a new adapter."""
    diff: Diff
    """The part of the update that concerns it."""

    @property
    def idle(self) -> bool:
        """Whether the adapter stays as it is: nothing changes, and everything that it should hold comes back."""
        grown = self.before is not None and self.rank != self.before.rank
        return self.diff.empty and not grown and not any(fact.verdict == "lost" for fact in self.diff.unchanged)

    @property
    def holds_nothing_else(self) -> bool:
        """Whether it is an adapter for new facts alone."""
        return not (self.diff.unchanged or self.diff.changed or self.diff.dropped)

    def with_new(self, new: Sequence[Fact]) -> Job:
        """The same adapter with other new facts."""
        return replace(self, diff=replace(self.diff, new=tuple(new)))


def jobs(version: Version, diff: Diff, rank: int) -> tuple[Job, ...]:
    """The adapters of a version, in order, each with its part of an update; the last one takes `rank`.

    A version without adapters gets its first one.
    """
    adapters = version.adapters or (None,)
    last = last_number(version)
    found = []
    for one in adapters:
        number = last if one is None else one.number
        is_last = number == last
        own_rank = rank if is_last or one is None else one.rank
        found.append(Job(number, own_rank, one, _part(diff, number, diff.new if is_last else ())))
    return tuple(found)


def last_number(version: Version) -> int:
    """The number of the adapter that new facts go to."""
    return version.adapters[-1].number if version.adapters else 1


def expected_harm(adapter: Adapter, new: int) -> float:
    """Nats a token that an adapter would cost the model with so many `new` target tokens more, if what it costs grew in
    proportion to what it holds; near its limit it grows faster. 0 if it is not known."""
    effects = adapter.side_effects
    if effects is None or not adapter.tokens:
        return 0.0
    return effects.loss_difference * (adapter.tokens + new) / adapter.tokens


def opened(number: int, rank: int, new: Sequence[Fact]) -> Job:
    """A new adapter for new facts."""
    return Job(number, rank, None, Diff(tuple(new), (), (), (), (), ()))


def _part(diff: Diff, number: int, new: Sequence[Fact]) -> Diff:
    """What of a diff concerns the adapter `number`, which also takes the facts `new`."""

    def own(held: Sequence[Held]) -> tuple[Held, ...]:
        return tuple(fact for fact in held if fact.adapter == number)

    changed = [pair for pair in zip(diff.changed, diff.replaced, strict=True) if pair[1].adapter == number]
    return Diff(
        new=tuple(new),
        changed=tuple(fact for fact, _ in changed),
        replaced=tuple(old for _, old in changed),
        unchanged=own(diff.unchanged),
        retracted=own(diff.retracted),
        forbidden=tuple(old for old in diff.forbidden if old.adapter == number),
    )
