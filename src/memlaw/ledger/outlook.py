"""What is said of a ledger before anything is trained, as records. Neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from memlaw.ledger.records import Room

SURE = 0.95
"""Probability at which tokens count as fitting."""


@dataclass(frozen=True)
class Expected:
    """An update before it is trained."""

    rank: int
    """Of the adapter afterwards."""
    tokens: int
    """Target tokens it would hold."""
    chance: float
    """The probability that they fit."""
    room: Room
    """What would still fit beside them."""
    fits_at: int | None
    """The smallest rank at which they fit with 95%; null if no rank of this placement is enough."""


@dataclass(frozen=True)
class Sized:
    """The rank of a new ledger that is to hold so many target tokens."""

    tokens: int
    """Asked for."""
    rank: int
    """The smallest that holds them with probability 95%."""
    chance: float
    """The probability that it does."""
    law: str
    """The law that says so."""
    borrowed: bool
    """Whether the law was fitted to another model or placement, and is right only within a factor of 4."""
    like: int | None
    """Facts that showed what kind of tokens they will be; null if random codes were taken for them."""
