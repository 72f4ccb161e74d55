"""The threshold p > 1/2, and the results of a recall."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

LN2 = math.log(2.0)
"""L_crit: a token with nll < ln 2 has p > 1/2, so it is the greedy choice (arXiv 2605.30260)."""


def is_ordered(nll: float) -> bool:
    """nll < ln 2, strictly: the token holds more than half of the probability, so no other can hold as much."""
    return nll < LN2


Reason = Literal[
    "other_text", "stubborn", "unreachable", "stopped_early", "ran_on", "after_end", "near_tie", "unproven", "too_thin"
]  # fmt: skip
"""Why a record is not certified; `memlaw.diagnosis.reasons` has a sentence for each."""


@dataclass(frozen=True)
class TokenRecall:
    """Measurements on one record. Tuples of numbers and flags have one entry for each target token.

    `nll[t]` = -log p(a_t | q, a_<t) in nats, teacher-forced; `top1[t]` whether a_t was the argmax there;
    `decoded[t]` whether free-running greedy decoding emitted a_t at t (None: not decoded).
    """

    nll: tuple[float, ...]
    top1: tuple[bool, ...]
    decoded: tuple[bool, ...] | None = None
    rival: tuple[float, ...] | None = None
    """-log p of the most probable token other than a_t: the runner-up where `top1`, else the winner."""
    edits: int | None = None
    """Edit distance, in tokens, between the target and the output of greedy decoding."""
    mended: bool | None = None
    """Whether greedy decoding was right to the end once its first wrong token was corrected (None: not known)."""
    ended: Literal["early", "late", "inside"] | None = None
    """Part of the end-of-sequence token in the first failure: emitted too early, not emitted when due, or inside the
    target, so that the tokens after it can never be emitted."""
    unreachable: tuple[int, ...] | None = None
    """Positions of stubborn tokens to which no adapter can give p > 1/2 (`memlaw.model.reach`); None: not known."""
    faithful: bool | None = None
    """Whether the target's tokens decode to its text, character by character; None: the target is made of tokens."""


@dataclass(frozen=True)
class RecordRecall:
    """Verdict on one fact. Positions count target tokens from 0; None if no token qualifies."""

    id: str
    length: int
    exact: bool | None
    """Greedy decoding reproduced the whole target, and its tokens decode to the target's text (None: not decoded)."""
    certified: bool | None
    """margin > tolerance and exact; None if not decoded, since a certificate needs both."""
    margin: float
    """ln 2 - max_t nll_t, in nats: positive means every token is ordered."""
    earliest_stubborn: int | None
    """First position with p <= 1/2."""
    first_failure: int | None
    """First wrong token of free-running greedy decoding (i*)."""
    edits: int | None
    """Edit distance, in tokens, between the target and the decoded text (None: not decoded)."""
    one_token_short: bool | None
    """Decoding failed, but correcting one token recovered the rest; None: not decoded, or not known."""
    log_p: float
    """Log, in nats, of the probability that sampling at temperature 1 emits the whole target: -sum_t nll_t."""
    expected_tokens: float = field(compare=False)
    """Tokens that sampling at temperature 1 gets right before its first error, on average:
    sum_t prod_{s<=t} p_s, at most `length`."""
    reason: Reason | None
    """Why it is not certified, or would not be; None if nothing is wrong."""
    why: str | None = field(compare=False)
    """The reason as a sentence, without any text of the target."""
    tokens: TokenRecall


@dataclass(frozen=True)
class RecallReport:
    """Recall of one memory set, as shares of tokens and records (definitions: arXiv 2605.30260, sections 3-4)."""

    records: int
    tokens: int
    acc_em: float | None
    """Share of records whose text greedy decoding reproduced exactly; None if not decoded."""
    acc_token: float | None
    """Share of positions greedy decoding gets right, position by position; None if not decoded."""
    certified: int | None
    """Records certified; None if not decoded."""
    ordered: int
    """Tokens with p > 1/2."""
    min_margin: float
    """Smallest record margin, nats."""
    mean_loss: float
    """Mean nll over all target tokens."""
    tolerance: float
    """Margin in nats that a certificate needs in this precision, on this model and these records."""
    rounding: float | None
    """Largest difference, in nats, between the teacher-forced and the cached loss of a token that is ordered under
    either; None if not decoded."""
    dtype: str
    items: tuple[RecordRecall, ...] = field(repr=False)
