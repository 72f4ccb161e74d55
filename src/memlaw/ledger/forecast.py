"""Before training: how likely an update fits at a rank, which rank it needs, and whether to grow or to open another.

A law gives the capacity of every rank for tokens like those of the facts (`planning/capacity.py`). What the adapters of
a ledger have been seen to hold, and to refuse, truncates it (`room.py`): a rank holds no less than what a lower one
held, and no more than what a higher one refused.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from memlaw.core.errors import ConfigError, FitError
from memlaw.core.facts import EncodedFact, Fact
from memlaw.data import target_tokens
from memlaw.ledger import view
from memlaw.ledger.diff import Diff
from memlaw.ledger.jobs import Sharing
from memlaw.ledger.outlook import SURE, Expected, Sized
from memlaw.ledger.records import Adapter, Room
from memlaw.ledger.room import CapacityBelief, Lognormal, harm_limit
from memlaw.ledger.store import Store

if TYPE_CHECKING:
    from memlaw.adapter.placement import Placement
    from memlaw.law import LawFit
    from memlaw.model.base import Base
    from memlaw.planning.capacity import Capacities
    from memlaw.planning.library import LawChooser

LIKELY = 0.5
"""Probability from which on an update tries to fit before it makes room: if it fails, that costs time alone."""

_SAMPLE = 256
"""Facts that are enough to tell what kind of tokens they are; the base runs on no more."""

_SPAN = (2.0**-10, 2.0**14, 193)
"""First and last multiple of the sample's tokens, between which capacities are searched, and how many: a few facts may
stand for a large ledger."""


@dataclass(frozen=True)
class Seen:
    """What adapters of a ledger have been seen to hold, to refuse and to cost."""

    held: tuple[tuple[int, float], ...] = ()
    """Rank and target tokens."""
    refused: tuple[tuple[int, float], ...] = ()
    """Rank and target tokens."""
    cost: tuple[int, float, float] | None = None
    """Rank and target tokens of the adapter as it is, and what it costs the model: nats a token on neutral text."""
    max_harm: float = math.inf
    """What it may cost."""

    def harm_limit(self, rank: int) -> Lognormal | None:
        """The target tokens at which this rank costs the model more than it may; None if that is not known."""
        if self.cost is None or not 0 < self.max_harm < math.inf:
            return None
        measured, tokens, harm = self.cost
        return harm_limit(tokens, harm, self.max_harm, rank / measured)

    def at(self, rank: int, belief: CapacityBelief) -> CapacityBelief:
        """The belief of this rank, truncated: capacity grows with the rank."""
        limit = self.harm_limit(rank)
        return (belief if limit is None else belief.below(limit)).seen(
            [tokens for lower, tokens in self.held if lower <= rank],
            [tokens for higher, tokens in self.refused if higher >= rank],
        )


def seen_by(fitted: Sequence[tuple[int, int]], adapter: Adapter | None, max_harm: float = math.inf) -> Seen:
    """What the adapters of a ledger have held, as rank and target tokens, and what the one that is to take more costs
    as it is."""
    if adapter is None or adapter.side_effects is None or not adapter.tokens:
        return Seen(tuple(fitted), max_harm=max_harm)
    cost = (adapter.rank, float(adapter.tokens), adapter.side_effects.loss_difference)
    return Seen(tuple(fitted), cost=cost, max_harm=max_harm)


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
        self.problem = "There is no law, or no fact, to forecast with."
        """Why every forecast is None, if it is."""

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

    def likely(self, rank: int, tokens: float) -> bool:
        """Whether so many target tokens rather fit than not, even by what the adapter costs alone; True where nothing
        is known."""
        belief, limit = self.belief(rank), self._seen.harm_limit(rank)
        if belief is None and limit is not None:
            belief = CapacityBelief((limit,))
        return belief is None or belief.chance(tokens) >= LIKELY

    def room(self, rank: int, held: float) -> Room | None:
        """What a rank holds beyond `held` target tokens."""
        belief = self.belief(rank)
        return None if belief is None else belief.room(held)

    def rank_for(self, tokens: float, most: int, chance: float = SURE) -> int | None:
        """The smallest rank that holds so many target tokens with this probability; None if none up to `most` does."""
        return smallest(lambda rank: (self.chance(rank, tokens) or 0.0) >= chance, most)

    def expected(self, rank: int, tokens: int) -> Expected | None:
        """What to expect of an adapter of this rank that is to hold so many target tokens."""
        chance, room = self.chance(rank, tokens), self.room(rank, tokens)
        if chance is None or room is None:
            return None
        return Expected(rank, tokens, chance, room, self.rank_for(tokens, self._placement.max_rank))

    @property
    def law(self) -> LawFit | None:
        """The law behind the forecasts, as it applies here."""
        return None if self._capacities is None else self._capacities.sizes.law

    @cached_property
    def _capacities(self) -> Capacities | None:
        import numpy as np

        from memlaw.planning.for_facts import capacities_for

        if self._choose is None or not self._facts:
            return None
        try:
            return capacities_for(self._base, self._facts, self._placement, self._choose, np.geomspace(*_SPAN))
        except FitError as error:
            self.problem = str(error)
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


def expected(
    store: Store, base: Base, diff: Diff, rank: int, choose: LawChooser | None, *, max_harm: float = math.inf
) -> Expected | None:
    """What the adapter that new facts go to can expect of an update to `rank`.

    None if it would hold nothing, or nothing is known of the capacity.

    The base runs on what would be held; in a ledger without texts, on what is new. Raises DataError, LedgerError.
    """
    from memlaw.adapter.on_model import placement_on
    from memlaw.ledger.measured import bench

    settings, head = store.settings(), store.head()
    last = Sharing(head, diff, settings.key, rank).last_job()
    known = store.texts(head).of(last.kept) if settings.texts else ()
    sample = (*known, *last.train)
    on = bench(base, sample, (), settings.eos, harm=False) if sample else None
    if on is None:
        return None
    where = placement_on(settings.placement, base.model)
    seen = seen_by(view.fitted(store), last.before, max_harm)
    new = target_tokens(on.wanted[len(known) :]) if last.train else 0
    tokens = last.tokens_kept + new
    return Forecaster(base, on.wanted, where, choose, seen).expected(rank, tokens)


def check_rank(held: int, asked: int | None) -> int:
    """The rank to go on with, as `asked` or as it is. Raises ConfigError for one below `held`."""
    if asked is not None and asked < held:
        raise ConfigError(
            f"The rank (--rank) {asked} is below the ledger's {held}: an update goes on with what the adapter holds, "
            "so it can only give it more room. Leave the rank out, or make a new ledger."
        )
    return asked or held


def check_asked(rank: int | None, room: int | None) -> None:
    """Raise ConfigError unless exactly one of both says how large a new ledger is to be."""
    if (rank is None) == (room is None):
        raise ConfigError(
            "A new ledger needs either a rank (--rank) or the target tokens that it is to hold (--room), and not both."
        )


def sized(
    base: Base, tokens: int, placement: Placement, choose: LawChooser, like: Sequence[Fact] = (), *, eos: bool = True
) -> Sized:
    """The rank at which a new ledger holds so many target tokens like those of `like`, by default random codes.

    Raises ConfigError if no rank of the placement is enough, FitError if the law cannot be used.
    """
    from memlaw.ledger.measured import bench

    if tokens < 1:
        raise ConfigError(f"room (--room) is {tokens}: choose how many target tokens the ledger is to hold, from 1 up.")
    on = bench(base, like or codes(), (), eos, harm=False)
    forecaster = Forecaster(base, on.wanted, placement, choose)
    law = forecaster.law
    if law is None:
        raise FitError(forecaster.problem)
    rank = forecaster.rank_for(tokens, placement.max_rank)
    if rank is None:
        raise ConfigError(
            f"No rank up to {placement.max_rank:,}, the most that {placement} can use, is predicted to hold {tokens:,} "
            f"target tokens with probability {SURE:.0%}. Adapt more modules (--placement all-linear), make several "
            "ledgers, or choose a --rank yourself."
        )
    chance = forecaster.chance(rank, tokens) or 0.0  # of a rank that was found by it
    return Sized(tokens, rank, chance, law.source, bool(law.caveat), len(like) or None)


def codes(count: int = 64, letters: int = 8) -> tuple[Fact, ...]:
    """Facts that no model can guess, to stand for unknown ones: the same random codes in every call."""
    draw = random.Random(0)
    return tuple(
        Fact(
            f"Code {number}:",
            " " + "".join(draw.choices(string.ascii_uppercase + string.digits, k=letters)),
            str(number),
        )
        for number in range(count)
    )
