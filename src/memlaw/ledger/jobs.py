"""What each adapter of a ledger has to learn and to lose in an update. Pure.

Facts stay where they are; what is new or has changed goes to the last adapter, or to one that is opened for it. An
update leaves an adapter alone, and need not rehearse what it holds, if nothing is added to it or retracted from it.

A prompt is served with the adapter that holds its fact. So the old target of a changed fact must not come back from the
adapter that holds the new one; the adapter that held the old one is not asked any more, and is trained to lose it as
soon as the fact is retracted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from memlaw.core.facts import Fact
from memlaw.ledger.diff import Diff
from memlaw.ledger.records import Adapter, Held, Retracted, Version, prompt_hash

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One adapter beside what it is to become."""

    number: int
    rank: int
    before: Adapter | None
    """Its record in the version that the update starts from; None for a new adapter."""
    kept: tuple[Held, ...]
    """Facts that it holds and goes on holding."""
    train: tuple[Fact, ...]
    """New and changed facts."""
    dropped: tuple[Held, ...]
    """Targets that must no longer come back from it."""
    forbidden: tuple[Retracted, ...]
    """Targets dropped by earlier versions that must still not come back from it."""
    woken: bool
    """Whether one of `forbidden` is asked of it for the first time."""

    @property
    def idle(self) -> bool:
        """Whether the adapter stays as it is: nothing changes, and everything that it should hold comes back."""
        grown = self.before is not None and self.rank != self.before.rank
        lost = any(fact.verdict == "lost" for fact in self.kept)
        return not (self.train or self.dropped or self.woken or grown or lost)

    @property
    def divisible(self) -> bool:
        """Whether another adapter could take what it has to learn, or half of it if it holds nothing else."""
        return len(self.train) > (self.before is None)

    @property
    def tokens_kept(self) -> int:
        """Target tokens of `kept`."""
        return sum(fact.tokens for fact in self.kept)


class Sharing:
    """An update shared out among the adapters of a version, and those that are opened for it.

    `rank` is that of the last adapter and of new ones.
    """

    def __init__(self, version: Version, diff: Diff, key: str, rank: int) -> None:
        self.diff, self.rank = diff, rank
        self._before = {one.number: one for one in version.adapters}
        self._ranks = {one.number: one.rank for one in version.adapters[:-1]}
        self._was_at = {fact.prompt: fact.adapter for fact in version.held}
        self._train = {prompt_hash(fact.prompt, key): fact for fact in diff.to_train}
        self.last = max(self._before, default=1)
        """The number of the last adapter."""
        self._is_at = {fact.prompt: fact.adapter for fact in diff.unchanged} | dict.fromkeys(self._train, self.last)
        self._share_out()

    def numbers(self) -> tuple[int, ...]:
        """The adapters of the version, in order; a version without any gets its first one."""
        return tuple(sorted({*self._before, self.last}))

    def last_job(self) -> Job:
        """What the adapter that new facts go to has to learn and to lose."""
        return self.job(self.last)

    def job(self, number: int) -> Job:
        """What the adapter has to learn and to lose."""
        before = self._before.get(number)
        return Job(
            number=number,
            rank=self._ranks.get(number, self.rank),
            before=before,
            kept=tuple(self._kept.get(number, ())),
            train=tuple(self._train[prompt] for prompt in self._new.get(number, ())),
            dropped=tuple(self._dropped.get(number, ())),
            forbidden=tuple(self._forbidden.get(number, ())),
            woken=number in self._woken,
        )

    def grow(self, job: Job, rank: int) -> Job:
        """The same job at a higher rank."""
        self._ranks[job.number] = rank
        return self.job(job.number)

    def spread(self, job: Job) -> tuple[int, ...]:
        """Give what a job has to learn to a new adapter, or half of it if that is all there is; the numbers of both."""
        self.last += 1
        new = job.train if job.before is not None else job.train[len(job.train) // 2 :]
        moved = {fact.id for fact in new}
        self._is_at |= {prompt: self.last for prompt, fact in self._train.items() if fact.id in moved}
        self._share_out()
        return job.number, self.last

    def _share_out(self) -> None:
        """Sort everything by adapter in one pass: a large ledger has many facts and many adapters."""
        self._kept = _by(lambda fact: fact.adapter, self.diff.unchanged)
        self._new = _by(self._is_at.__getitem__, self._train)
        self._dropped = _by(self._asked_of, self.diff.dropped)
        self._forbidden = _by(self._asked_of, self.diff.forbidden)
        self._woken = {old.adapter for old in self.diff.forbidden if self._wakes(old)}

    def _asked_of(self, old: Held | Retracted) -> int:
        """The adapter that its prompt is served with: that of the fact now held, or the one that held the target."""
        return self._is_at.get(old.prompt, old.adapter)

    def _wakes(self, old: Retracted) -> bool:
        """Whether a prompt that another adapter answered now has no fact, so that its own must not give the target."""
        return self._was_at.get(old.prompt, old.adapter) != old.adapter and old.prompt not in self._is_at


def _by(adapter_of: Callable[[T], int], values: Iterable[T]) -> dict[int, list[T]]:
    groups: dict[int, list[T]] = {}
    for value in values:
        groups.setdefault(adapter_of(value), []).append(value)
    return groups
