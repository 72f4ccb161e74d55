"""Targets that must no longer come back: how they are trained away, and how it is judged that they are gone.

A retracted target is gone if greedy decoding does not give it and sampling gives it no more often than `FACTOR` times
what the base alone does. The old target of a changed fact may begin as the new one does, and those tokens have to be
probable now. So it is judged, and trained away, by the tokens from the first that differs: given those before it,
sampling must give the rest no more often than `FACTOR` times what the base does. A target that is nothing but the
beginning of the new one has no such tokens, and cannot be told from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memlaw.core.facts import EncodedFact
from memlaw.core.recall import RecordRecall, TokenRecall

FACTOR = 10.0
"""How many times as probable as under the base alone a retracted target may be."""

_SAFETY = 0.5
"""Training goes on until log FACTOR is used up to this part, so that rounding does not decide."""


@dataclass(frozen=True)
class Gone:
    """A target that must no longer come back, measured."""

    id: str
    log_p: float
    """Log of the probability that sampling emits the whole target, nats."""
    log_p_base: float
    """The same of the base alone."""
    rise: float
    """By how much the log-probability of its own tokens, given those that it shares with the target now held, exceeds
    that of the base; without shared tokens log_p - log_p_base."""
    decoded: bool
    """Whether greedy decoding emits it, and not just as the beginning of the target now held."""
    decoded_base: bool
    """Whether its own tokens are what greedy decoding of the base alone gives there, which no update can change."""

    @property
    def holds(self) -> bool:
        """Whether it is gone."""
        return self.rise <= math.log(FACTOR) and (self.decoded_base or not self.decoded)


def shared_tokens(unwanted: Sequence[EncodedFact], wanted: Sequence[EncodedFact]) -> tuple[int, ...]:
    """How many tokens each target of `unwanted` has in common with the beginning of the target that `wanted` has for
    its prompt; 0 where it has none."""
    held = {fact.prompt: fact.target for fact in wanted}
    return tuple(_in_common(fact.target, held.get(fact.prompt, ())) for fact in unwanted)


def judged(now: RecordRecall, alone: RecordRecall, shared: int) -> Gone:
    """The verdict on a target of which the first `shared` tokens are those of the target now held.

    `now` is measured with the adapter, `alone` without; both were decoded.
    """
    rise = math.fsum(alone.tokens.nll[shared:]) - math.fsum(now.tokens.nll[shared:])
    return Gone(
        id=now.id,
        log_p=now.log_p,
        log_p_base=alone.log_p,
        rise=rise,
        decoded=shared < now.length and all(now.tokens.decoded or ()),
        decoded_base=all(alone.tokens.top1[shared:]),
    )


def with_floors(
    unwanted: Sequence[EncodedFact], alone: Sequence[TokenRecall], wanted: Sequence[EncodedFact]
) -> tuple[EncodedFact, ...]:
    """`unwanted` as rows for training, without those that need none, such as targets that the base is sure of.

    The loss of each of a target's own tokens (`shared_tokens`) must reach that of the base `alone`, but for an equal
    part of log FACTOR where the token is the base's own greedy choice; where it is not, it must not become one.
    """
    shared = shared_tokens(unwanted, wanted)
    rows = (_row(*each) for each in zip(unwanted, alone, shared, strict=True))
    return tuple(row for row in rows if any(bound > 0 for bound in row.floor))  # every loss reaches a floor of 0


def _row(fact: EncodedFact, alone: TokenRecall, shared: int) -> EncodedFact:
    own = zip(alone.nll[shared:], alone.top1[shared:], strict=True)
    slack = _SAFETY * math.log(FACTOR) / max(1, fact.length - shared)
    floor = tuple(nll - slack if top1 else nll for nll, top1 in own)
    return replace(fact, prompt_length=fact.prompt_length + shared, floor=floor)


def _in_common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
