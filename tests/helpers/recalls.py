from __future__ import annotations

from helpers import slow_training as reference
from helpers import tiny
from memlaw.core.facts import EncodedFact
from memlaw.model.base import Base

FACTS = tiny.facts([(4, 6), (4, 3), (7, 5), (2, 1)])


def followed(base: Base, prompt: tuple[int, ...], length: int, detours: dict[int, int]) -> EncodedFact:
    """A fact that greedy decoding follows but for the `detours`, position -> another token there."""
    ids = list(prompt)
    for position in range(length):
        (token,) = reference.greedy(base.model, tuple(ids), 1)
        ids.append(detours.get(position, token))
    return EncodedFact(f"d{len(detours)}", tuple(ids), len(prompt))
