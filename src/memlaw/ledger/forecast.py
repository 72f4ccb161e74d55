"""Before training: how likely an update fits at a rank, which rank it needs, and whether to grow or to open another.

A law gives the capacity of every rank for tokens like those of the facts (`planning/capacity.py`). What the adapters of
a ledger have been seen to hold, and to refuse, truncates it (`room.py`): a rank holds no less than what a lower one
held, and no more than what a higher one refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from memlaw.core.errors import FitError
from memlaw.core.facts import EncodedFact
from memlaw.ledger.records import Room
from memlaw.ledger.room import CapacityBelief

if TYPE_CHECKING:
    from memlaw.adapter.placement import Placement
    from memlaw.model.base import Base
    from memlaw.planning.capacity import Capacities
    from memlaw.planning.library import LawChooser

SURE = 0.95
"""Probability at which an update counts as fitting."""

_SAMPLE = 256
"""Facts that are enough to tell what kind of tokens they are; the base runs on no more."""

_MULTIPLES = np.geomspace(2.0**-10, 2.0**14, 193)
"""Of the sample's tokens, between which capacities are searched: a few facts may stand for a large ledger."""


@dataclass(frozen=True)
class Seen:
    """What adapters of a ledger have been seen to hold and to refuse: pairs of rank and target tokens."""

    held: tuple[tuple[int, float], ...] = ()
    refused: tuple[tuple[int, float], ...] = ()

    def at(self, rank: int, belief: CapacityBelief) -> CapacityBelief:
        """The belief of this rank, truncated: capacity grows with the rank."""
        return belief.seen(
            [tokens for lower, tokens in self.held if lower <= rank],
            [tokens for higher, tokens in self.refused if higher >= rank],
        )


class Forecaster:
    """What the ranks of a placement hold of tokens like those of `facts`, by a law and by what was `seen`.

    The base runs once, on a sample of the facts, when the first forecast is asked for; nothing may be attached to it
    then. Without a law or facts, or where the law cannot be used, every forecast is None.
    """

    def __init__(
        self,
        base: Base,
        facts: Sequence[EncodedFact],
        placement: Placement,
        choose: LawChooser | None,
        seen: Seen | None = None,
    ) -> None:
        self._base, self._placement, self._choose = base, placement, choose
        self._facts = facts[:: -(-len(facts) // _SAMPLE)] if facts else ()
        self._seen = seen or Seen()
        self._beliefs: dict[int, CapacityBelief] = {}

    def belief(self, rank: int) -> CapacityBelief | None:
        """The capacity of a rank, in target tokens; None if nothing is known."""
        if self._capacities is None:
            return None
        if rank not in self._beliefs:
            law = CapacityBelief.from_law(self._capacities.at(rank))
            self._beliefs[rank] = self._seen.at(rank, law)
        return self._beliefs[rank]

    def chance(self, rank: int, tokens: float) -> float | None:
        """The probability that a rank holds so many target tokens."""
        belief = self.belief(rank)
        return None if belief is None else belief.chance(tokens)

    def room(self, rank: int, held: float) -> Room | None:
        """What a rank holds beyond `held` target tokens."""
        belief = self.belief(rank)
        return None if belief is None else belief.room(held)

    def rank_for(self, tokens: float, most: int, chance: float = SURE) -> int | None:
        """The smallest rank that holds so many target tokens with this probability; None if none up to `most` does."""
        return smallest(lambda rank: (self.chance(rank, tokens) or 0.0) >= chance, most)

    @cached_property
    def _capacities(self) -> Capacities | None:
        from memlaw.planning.for_facts import capacities_for  # loads torch

        if self._choose is None or not self._facts:
            return None
        try:
            return capacities_for(self._base, self._facts, self._placement, self._choose, _MULTIPLES)
        except FitError:  # the law cannot be used here: nothing is known
            return None


def smallest(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest rank from 1 to `most` that is enough, if every higher one is, too; None if none is."""
    if most < 1 or not enough(most):
        return None
    low, high = 0, most  # high is enough, low is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Grow:
    """Raise the rank of an adapter in place."""

    rank: int


@dataclass(frozen=True)
class Open:
    """Put what is new into an adapter of its own."""

    rank: int


def cheaper(forecaster: Forecaster, rank: int, held: float, new: float, most: int) -> Grow | Open | None:
    """How to make room for `new` target tokens beside `held` ones: whichever adds fewer parameters.

    Parameters are proportional to the rank: growing from `rank` to r' adds r' - rank, another adapter of rank r'' adds
    r''. A tie goes to growing, which needs no routing. If the capacity is not known, another adapter of the same rank;
    None if by the law neither is enough up to rank `most`.
    """
    if forecaster.belief(rank) is None:
        return Open(rank)
    grown, opened = forecaster.rank_for(held + new, most), forecaster.rank_for(new, most)
    if grown is not None and (opened is None or grown - rank <= opened):
        return Grow(max(grown, rank))
    return None if opened is None else Open(opened)
