"""The verdict on each record, and the shares over all of them.

`memlaw.diagnosis.measure` gives, per target token, nll = -log p given the true prefix, whether the token was the argmax
there, and whether free-running greedy decoding emitted it. The rest follows from these (arXiv 2605.30260, sections 3
and 4):

    ordered   <=>  nll < ln 2  <=>  p > 1/2            sufficient for greedy decoding to emit the token, not necessary
    margin     =   ln 2 - max_t nll_t                  of a record, in nats; positive <=> every token is ordered
    exact     <=>  decoding reproduced the whole target, and its tokens decode to the target's text, to the character
    certified <=>  margin > tolerance and exact

A token at exactly p = 1/2 is stubborn: a second token can have p = 1/2 too, so it proves nothing.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate

from memlaw.core.errors import ConfigError, DataError
from memlaw.core.facts import EncodedFact
from memlaw.core.recall import LN2, RecallReport, RecordRecall, TokenRecall, is_ordered
from memlaw.diagnosis.reasons import reason_of


def diagnose(
    encoded: Sequence[EncodedFact],
    tokens: Sequence[TokenRecall],
    *,
    tolerance: float,
    dtype: str,
    rounding: float | None = None,
) -> RecallReport:
    """The verdict on every record and the shares over all of them.

    Args:
        encoded: the facts, in reporting order.
        tokens: the measurements of each fact, in the same order; all of them decoded, or none.
        tolerance: margin in nats that a certificate needs, since teacher-forced and cached losses differ by rounding.
        dtype: precision of the losses, such as "float32".
        rounding: the largest such difference observed, in nats.

    Raises:
        DataError: nothing was measured, the measurements do not match the facts, or a loss is not finite.
        ConfigError: the tolerance is negative or not finite.
    """
    if len(encoded) != len(tokens):
        raise DataError(
            f"{len(encoded)} facts came with measurements of {len(tokens)}, so verdicts would be assigned to the wrong "
            f"records. Pass one TokenRecall per fact, in the same order."
        )
    for fact, measured in zip(encoded, tokens, strict=True):
        check(fact.id, fact.length, measured)
    items = tuple(judge(fact.id, measured, tolerance) for fact, measured in zip(encoded, tokens, strict=True))
    return total(items, tolerance=tolerance, dtype=dtype, rounding=rounding)


def stubborn_positions(record: RecordRecall) -> tuple[int, ...]:
    """Positions (from 0) of the tokens with p <= 1/2."""
    return tuple(position for position, nll in enumerate(record.tokens.nll) if not is_ordered(nll))


def stubborn_counts(report: RecallReport) -> tuple[int, ...]:
    """Number of stubborn tokens of each record, in the report's order."""
    return tuple(len(stubborn_positions(record)) for record in report.items)


def position_counts(positions: Iterable[int | None]) -> dict[int, int]:
    """How many records have each position, in ascending order; None (no such position) is skipped.

    `position_counts(item.first_failure for item in report.items)` is the first-failure histogram of the paper.
    """
    return dict(sorted(Counter(position for position in positions if position is not None).items()))


def worst(report: RecallReport, n: int) -> tuple[RecordRecall, ...]:
    """The `n` records to look at first: those decoded wrongly, then the others, each group by ascending margin."""
    return tuple(heapq.nsmallest(n, report.items, key=lambda item: (item.exact is not False, item.margin)))


def judge(name: str, tokens: TokenRecall, tolerance: float) -> RecordRecall:
    """The verdict on the record `name`, whose numbers have passed `check`."""
    margin = LN2 - max(tokens.nll)
    # With every token right, the text decoded from the output is the one decoded from the target's tokens.
    exact = None if tokens.decoded is None else all(tokens.decoded) and tokens.faithful is not False
    reason, why = reason_of(tokens, tolerance) or (None, None)
    return RecordRecall(
        id=name,
        length=len(tokens.nll),
        exact=exact,
        certified=None if exact is None else exact and margin > tolerance,
        margin=margin,
        earliest_stubborn=_first_false(is_ordered(nll) for nll in tokens.nll),
        first_failure=None if tokens.decoded is None else _first_false(tokens.decoded),
        edits=tokens.edits,
        one_token_short=False if exact or tokens.faithful is False else tokens.mended,
        log_p=-math.fsum(tokens.nll),
        expected_tokens=math.fsum(math.exp(-nll) for nll in accumulate(tokens.nll)),
        reason=reason,
        why=why,
        tokens=tokens,
    )


def total(items: tuple[RecordRecall, ...], *, tolerance: float, dtype: str, rounding: float | None) -> RecallReport:
    """The shares over all records."""
    if not items:
        raise DataError("No record was measured, so there are no shares to report. Pass at least one fact.")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ConfigError(
            f"The tolerance of a certificate is {tolerance} nats. A negative tolerance would certify tokens with "
            f"p <= 1/2; use 0 or more."
        )
    decoded = _decoded_flags(items)
    losses = [nll for item in items for nll in item.tokens.nll]
    return RecallReport(
        records=len(items),
        tokens=len(losses),
        acc_em=None if decoded is None else sum(bool(item.exact) for item in items) / len(items),
        acc_token=None if decoded is None else sum(decoded) / len(decoded),
        certified=None if decoded is None else sum(bool(item.certified) for item in items),
        ordered=sum(map(is_ordered, losses)),
        min_margin=min(item.margin for item in items),
        mean_loss=math.fsum(losses) / len(losses),
        tolerance=tolerance,
        rounding=rounding,
        dtype=dtype,
        items=items,
    )


def check(name: str, length: int, tokens: TokenRecall) -> None:
    """Raise DataError unless every array has one entry per target token and every loss is finite."""
    arrays = {"nll": tokens.nll, "top1": tokens.top1, "decoded": tokens.decoded, "rival": tokens.rival}
    for array, values in arrays.items():
        if values is not None and len(values) != length:
            raise DataError(
                f"Record {name!r} has {length} target tokens but {len(values)} values of {array}, so the verdict would "
                f"be about other tokens. Measure this record again."
            )
    if length == 0:
        raise DataError(f"Record {name!r} has no target tokens, so there is nothing to recall. Remove it.")
    for position, nll in enumerate(tokens.nll):
        if not math.isfinite(nll):
            raise not_a_number(name, position, nll)


def not_a_number(name: str, position: int, nll: float) -> DataError:
    """The error for a loss that is NaN or infinite."""
    return DataError(
        f"Record {name!r}, position {position}: the loss is {nll}. Either the model's logits overflowed or its weights "
        f"contain NaN. Look for NaN in the adapter, or measure in float32."
    )


def _decoded_flags(items: Sequence[RecordRecall]) -> list[bool] | None:
    """The flags of all tokens, or None if no record was decoded."""
    flags = [item.tokens.decoded for item in items if item.tokens.decoded is not None]
    if not flags:
        return None
    if len(flags) != len(items):
        raise DataError(
            f"{len(flags)} of {len(items)} records were decoded. An accuracy over some of them would be mistaken for "
            f"one over all; decode every record, or none."
        )
    return [hit for record in flags for hit in record]


def _first_false(flags: Iterable[bool]) -> int | None:
    return next((position for position, flag in enumerate(flags) if not flag), None)
