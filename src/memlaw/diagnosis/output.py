"""What greedy decoding emitted beside the target: right and wrong tokens, and what an end of sequence had to do with.

No torch: the output may be a model's in this process, or a server's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rapidfuzz.distance import Levenshtein

from memlaw.core.facts import EncodedFact
from memlaw.core.recall import TokenRecall

NOTHING = -1
"""In the place of a token that was not emitted since generation had stopped; no token has this id."""


def with_output(tokens: TokenRecall, fact: EncodedFact, emitted: Sequence[int], stops: Sequence[int]) -> TokenRecall:
    """`tokens` with the outcome of decoding: one of the `emitted` ids for each target token, `NOTHING` after an end."""
    spelled = [token for token in emitted if token != NOTHING]
    return replace(
        tokens,
        decoded=tuple(a == b for a, b in zip(emitted, fact.target, strict=True)),
        edits=Levenshtein.distance(spelled, fact.target),
        ended=_ended(fact, emitted, stops),
    )


def _ended(
    fact: EncodedFact, emitted: Sequence[int], stops: Sequence[int]
) -> Literal["early", "late", "inside"] | None:
    """What end of sequence had to do with the first wrong token, if anything; see `TokenRecall.ended`."""
    pairs = zip(emitted, fact.target, strict=True)
    wrong, due = next(((token, due) for token, due in pairs if token != due), (None, None))
    if wrong is None:
        return None
    if wrong == NOTHING:  # decoding had ended correctly before: the target itself holds an end of sequence
        return "inside"
    if wrong in stops:
        return None if due in stops else "early"  # it ends where it should, but with another token
    return "late" if due in stops else None
