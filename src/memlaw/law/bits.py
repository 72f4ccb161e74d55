"""Memory in bits: how much of a text an adapter holds, relative to a predictor without memory of it.

    L_init'   = min(L_init, ln V, L_unigram)          nats per target token (`memoryless_loss`)
    stored    = max(0, L_init' - L_final) * l / ln 2  bits by which the adapter shortens the description of the text
    certified = l_certified * L_init' / ln 2          bits of the records that come back verbatim, with a certificate

dL = L_init - L_final also contains what the base loses by predicting such tokens poorly; these bits do not.
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
    """A published estimate of the bits that one parameter holds."""

    name: str
    low: float
    high: float
    source: str
    url: str

    @property
    def range(self) -> str:
        """The bits as text, such as "3.5 to 3.8"."""
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
"""Capacity of whole models trained from scratch, in bits per parameter: 2 for facts; for random strings 3.51 in
bfloat16 and 3.83 in float32."""


def in_bits(tokens: float, nats: float) -> float:
    """tokens * nats / ln 2: the bits of target tokens at a mean loss in nats."""
    return tokens * nats / LN2


def memoryless_loss(targets: Iterable[Sequence[int]], loss_init: float, vocabulary: int) -> float:
    """L_init' = min(L_init, ln V, unigram_loss), in nats per target token: the best predictor without memory.

    `loss_init` is the base's own loss and V = `vocabulary` the number of logits. The base alone can be a poor
    predictor: on random tokens Qwen3-8B has a loss of 12.4 nats, above ln 151,936 = 11.93, and an adapter removes the
    difference without remembering anything. On phone numbers, knowing that all tokens are digits leaves ln 10 = 2.3
    nats. On text that the base understands, its own loss is the smallest. None of the three knows the layout of
    records: that a number ends after ten digits is worth 0.3 nats per token, and counts as memory. Raises DataError as
    `unigram_loss`.
    """
    return min(loss_init, math.log(vocabulary), unigram_loss(targets, vocabulary))


def unigram_loss(targets: Iterable[Sequence[int]], vocabulary: int) -> float:
    """-1/N ln [1/V * 1/C(V, m) * prod_t (n_t + 1/2) / (t + m/2)], in nats per token.

    The loss of one token distribution, including the cost of learning it: how many tokens m occur, which of the V they
    are, and how often each occurs, by the code of Krichevsky and Trofimov (1981), where n_t of the t earlier tokens
    were the same. (Over all V tokens that code would need texts far longer than V to learn that they are digits.) The
    result does not depend on the order, so it is computed from counts. Raises DataError without tokens, or for tokens
    outside the vocabulary.
    """
    counts = Counter(chain.from_iterable(targets))
    if not counts or max(counts) >= vocabulary:
        content = f"a token {max(counts)}" if counts else "no token at all"
        raise DataError(
            f"The targets have {content}, but the model has {vocabulary} logits, so no loss can be computed. Pass the "
            "targets as this model's tokens, and the number of rows of its output embeddings."
        )
    total, kinds = counts.total(), len(counts)
    which_tokens = math.log(vocabulary) + _log_choose(vocabulary, kinds)
    # The product over t telescopes to Gamma functions of the counts.
    numerator = math.fsum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in counts.values())
    denominator = math.lgamma(total + kinds / 2) - math.lgamma(kinds / 2)
    return (which_tokens + denominator - numerator) / total


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


@dataclass(frozen=True)
class MemoryBits:
    """What the adapter of one cell holds; None if not measured."""

    stored_bits: float | None
    """From the fall of the mean loss: partly remembered tokens count in part."""
    certified_bits: float | None
    """From the certified records alone, at the mean L_init' of the cell's text."""
    bits_per_parameter: float | None
    """Stored bits per effective parameter."""


def memory_bits(result: CellResult) -> MemoryBits:
    """The bits of a measured cell; None for results older than `loss_memoryless`.

    Certified bits can exceed stored bits: a certified record comes back whole although its loss is not 0.
    """
    memoryless, final, certain = result.loss_memoryless, result.loss_final, result.certified_tokens
    stored = None if memoryless is None or final is None else in_bits(result.cell.length, max(0.0, memoryless - final))
    certified = None if memoryless is None or certain is None else in_bits(certain, memoryless)
    return MemoryBits(stored, certified, None if stored is None else stored / result.parameters)
