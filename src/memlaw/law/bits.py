"""Memory in bits: how much of a text an adapter holds, counted against a predictor that remembers nothing of it.

    L_init'   = min(L_init, ln V, L_unigram)          nats per target token (`memoryless_loss`)
    stored    = max(0, L_init' - L_final) * l / ln 2  bits that having the adapter saves whoever must write the text
    certified = l_certified * L_init' / ln 2          bits of the records that come back verbatim, with a certificate

That the base was a poor predictor of such tokens is part of dL, but not of these bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from memlaw.core.cells import CellResult
from memlaw.core.errors import DataError
from memlaw.core.recall import LN2


@dataclass(frozen=True)
class Anchor:
    """A published number of bits that one parameter holds."""

    name: str
    low: float
    high: float
    source: str
    url: str

    @property
    def range(self) -> str:
        """Its bits, in words."""
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


ANCHORS = (
    Anchor(
        "knowledge, whole models",
        2.0,
        2.0,
        "Allen-Zhu and Li, Physics of Language Models: Part 3.3",
        "https://arxiv.org/abs/2404.05405",
    ),
    Anchor(
        "raw memorisation, whole models",
        3.5,
        3.8,
        "Morris et al., How much do language models memorize?",
        "https://arxiv.org/abs/2505.24832",
    ),
)
"""What whole models hold when they are trained from scratch: 2 bits of facts; of random strings, 3.51 in bfloat16 and
3.83 in float32."""


def in_bits(tokens: float, nats: float) -> float:
    """tokens * nats / ln 2: the bits of so many target tokens at a mean loss of so many nats."""
    return tokens * nats / LN2


def memoryless_loss(targets: Iterable[Sequence[int]], loss_init: float, vocabulary: int) -> float:
    """L_init': nats per target token of the best predictor that remembers nothing of the text but which tokens occur.

    The smallest of the base's own loss and the losses of two predictors without any context: all tokens of the
    `vocabulary` (the number of logits) alike, ln V, and `unigram_loss`. The base alone would be too poor a predictor.
    On random tokens Qwen3-8B pays 12.4 nats, more than ln 151,936 = 11.93: an adapter takes that difference away
    without a memory of anything. On telephone numbers, to know that all tokens are digits leaves ln 10 = 2.3 nats,
    which can be much under the base's loss. On text that the base understands, its own loss is the smallest.
    None of the three knows the layout of records: that a number ends after ten digits is worth 0.3 nats a token, and
    counts as memory once it is learned. Raises DataError as `unigram_loss`.
    """
    return min(loss_init, math.log(vocabulary), unigram_loss(targets, vocabulary))


def unigram_loss(targets: Iterable[Sequence[int]], vocabulary: int) -> float:
    """-1/N ln [1/V * 1/C(V, m) * prod_t (n_t + 1/2) / (t + m/2)], in nats per token.

    The loss of one distribution over the m tokens that occur, charged for being learned: how many they are, which of
    the V, and then how often each, by the code of Krichevsky and Trofimov (1981), in which n_t of the t tokens before
    were the same. (That code over all V tokens at once would ask for texts far longer than V before it learns that
    they are digits.) The order does not matter, so counts are enough. Raises DataError if there are no tokens, or some
    beyond the vocabulary.
    """
    counts = Counter(chain.from_iterable(targets))
    if not counts or max(counts) >= vocabulary:
        found = f"a token {max(counts)}" if counts else "no token at all"
        raise DataError(
            f"The targets have {found}, the model {vocabulary} logits, so no loss can be worked out. Pass the targets "
            "as this model's tokens, and the number of rows of its output embeddings."
        )
    total, kinds = counts.total(), len(counts)
    chosen = math.log(vocabulary) + _log_choose(vocabulary, kinds)
    learned = math.fsum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in counts.values())
    spread = math.lgamma(total + kinds / 2) - math.lgamma(kinds / 2)
    return (chosen + spread - learned) / total


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True)
class MemoryBits:
    """What the adapter of one cell holds; None where it was not measured."""

    stored_bits: float | None
    """By the fall of the mean loss: partly remembered tokens count in part."""
    certified_bits: float | None
    """By the certified records alone, at the mean L_init' of the cell's text."""
    bits_per_parameter: float | None
    """Stored bits."""


def memory_bits(result: CellResult) -> MemoryBits:
    """The bits of a measured cell; results from before `loss_memoryless` was recorded have none.

    A certified record comes back to the last token though its loss is not 0, so certified bits can exceed the stored.
    """
    memoryless, final, certain = result.loss_memoryless, result.loss_final, result.certified_tokens
    stored = None if memoryless is None or final is None else in_bits(result.cell.length, max(0.0, memoryless - final))
    certified = None if memoryless is None or certain is None else in_bits(certain, memoryless)
    return MemoryBits(stored, certified, None if stored is None else stored / result.parameters)
