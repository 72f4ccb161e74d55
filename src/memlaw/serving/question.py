"""A fact as it is put to a server, and what the server says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memlaw.core.facts import EncodedFact

Token = int | str
"""A token of a server: its id, or, where the server does not tell, its text."""


@dataclass(frozen=True)
class Question:
    """One fact: its prompt and target as tokens and as text."""

    fact: EncodedFact
    prompt: str
    """The prompt as users send it."""
    pieces: tuple[str, ...] = field(repr=False)
    """The text of each target token, after the prompt and the tokens before it."""

    def expected(self, *, by_ids: bool) -> tuple[Token, ...]:
        """The target's tokens as a server names them."""
        return self.fact.target if by_ids else self.pieces

    def prefix(self, known: int) -> tuple[int, ...]:
        """The prompt and the first `known` tokens of the target."""
        return self.fact.ids[: self.fact.prompt_length + known]


@dataclass(frozen=True)
class Said:
    """One token that a server generated."""

    token: Token
    logprob: float | None
    """Of this token, in nats; None if the server does not say."""
    others: Mapping[Token, float] = field(default_factory=dict)
    """The most probable tokens in its place, this one perhaps among them."""


@dataclass(frozen=True)
class Completion:
    """What a server generated, greedily."""

    said: tuple[Said, ...]
    ended: bool
    """Whether generation ended by itself, not at the limit. The token that ended it may be missing."""


@dataclass(frozen=True)
class Scored:
    """The measurements of one target token after the true tokens before it."""

    logprob: float | None
    """None if the server does not say."""
    top: bool
    """Whether it was the most probable token there."""
    rival: float | None
    """The log-probability of the most probable other token; None if the server does not say."""


def rival_of(others: Mapping[Token, float], target: Token) -> float | None:
    """The log-probability of the most probable of `others` but `target`."""
    return max((value for token, value in others.items() if token != target), default=None)


def as_scored(said: Said, target: Token) -> Scored:
    """`target` where a server generated `said`."""
    right = said.token == target
    return Scored(said.logprob if right else said.others.get(target), right, rival_of(_with_own(said), target))


def _with_own(said: Said) -> Mapping[Token, float]:
    return said.others if said.logprob is None else {**said.others, said.token: said.logprob}


def matching(said: Sequence[Said], expected: Sequence[Token]) -> int:
    """How many tokens are as expected before the first that is not."""
    pairs = zip(said, expected, strict=False)
    return next((at for at, (one, due) in enumerate(pairs) if one.token != due), min(len(said), len(expected)))
