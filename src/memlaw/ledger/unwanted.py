"""Targets that must no longer come back: how they are trained away, and how it is judged that they are gone.

A retracted target is gone if greedy decoding does not give it and sampling gives it no more often than `FACTOR` times
what the base alone does. The old target of a changed fact shares its prompt with the new one, whose first differing
token has most of the probability: only what follows after that token is trained away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from memlaw.core.facts import EncodedFact

FACTOR = 10.0
"""How many times as probable as under the base alone a retracted target may be."""

_SAFETY = 0.5
"""Training goes on until log FACTOR is used up to this part, so that rounding does not decide."""


@dataclass(frozen=True)
class Gone:
    """A target that must no longer come back, measured."""

    id: str
    log_p: float
    """Log of the probability that sampling emits it, nats."""
    log_p_base: float
    """The same of the base alone."""
    decoded: bool
    """Whether greedy decoding emits it."""
    decoded_base: bool
    """Whether it does under the base alone, which no update can change."""

    @property
    def holds(self) -> bool:
        """Whether it is gone."""
        quiet = self.log_p <= self.log_p_base + math.log(FACTOR)
        return quiet and (self.decoded_base or not self.decoded)


def with_floors(
    unwanted: Sequence[EncodedFact], base_nll: Sequence[Sequence[float]], wanted: Sequence[EncodedFact]
) -> tuple[EncodedFact, ...]:
    """`unwanted` as rows for training: each token's loss must reach that of the base alone, `base_nll`, but for its
    part of log FACTOR. Where a fact of `wanted` has the same prompt, only the tokens after the first that differs are
    kept; a target without any of these needs no row.
    """
    by_prompt = {fact.prompt: fact for fact in wanted}
    rows = (_row(fact, nll, by_prompt) for fact, nll in zip(unwanted, base_nll, strict=True))
    return tuple(row for row in rows if row.length)


def _row(fact: EncodedFact, nll: Sequence[float], by_prompt: Mapping[tuple[int, ...], EncodedFact]) -> EncodedFact:
    slack = _SAFETY * math.log(FACTOR) / fact.length
    skipped = _shared(fact.target, by_prompt[fact.prompt].target) + 1 if fact.prompt in by_prompt else 0
    skipped = min(skipped, fact.length)
    floor = tuple(loss - slack for loss in nll[skipped:])
    return replace(fact, prompt_length=fact.prompt_length + skipped, floor=floor)


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two targets have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
