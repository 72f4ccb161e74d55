"""The code length of a text, token by token."""

import math
from collections.abc import Sequence


def unigram_loss(tokens: Sequence[int], vocabulary: int) -> float:
    """Encode how many tokens occur and which ones, then each token by the counts of those before it."""
    seen = dict.fromkeys(tokens, 0)
    total = math.log(vocabulary * math.comb(vocabulary, len(seen)))
    for t, token in enumerate(tokens):
        total -= math.log((seen[token] + 0.5) / (t + len(seen) / 2))
        seen[token] += 1
    return total / len(tokens)
