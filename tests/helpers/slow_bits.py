"""Codes of a text, token by token."""

import math
from collections.abc import Sequence


def unigram_loss(tokens: Sequence[int], vocabulary: int) -> float:
    """Say how many tokens occur and which, then each token at what the counts of those before it make it worth."""
    seen = dict.fromkeys(tokens, 0)
    total = math.log(vocabulary * math.comb(vocabulary, len(seen)))
    for t, token in enumerate(tokens):
        total -= math.log((seen[token] + 0.5) / (t + len(seen) / 2))
        seen[token] += 1
    return total / len(tokens)
