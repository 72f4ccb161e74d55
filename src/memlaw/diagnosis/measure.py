"""Did it stick? Teacher-forced probabilities and free-running greedy decoding of a memory set.

The base is measured with whatever is attached to it: nothing, a stack in training, or a PEFT adapter. The verdicts
follow in `memlaw.diagnosis.verdicts`, which needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from memlaw.core.errors import ModelError
from memlaw.core.facts import EncodedFact
from memlaw.core.precision import TOLERANCE
from memlaw.core.recall import RecallReport, TokenRecall, is_ordered
from memlaw.data import check_context
from memlaw.data.spelling import decode as decode_ids
from memlaw.data.spelling import survives
from memlaw.diagnosis.decoding import Decoded, greedy
from memlaw.diagnosis.output import with_output
from memlaw.diagnosis.teacher_forced import teacher_forced
from memlaw.diagnosis.verdicts import diagnose
from memlaw.model.base import Base
from memlaw.model.head import frozen_head
from memlaw.model.parts import frozen
from memlaw.model.reach import reach_by_lines

DECODED_ALONE = 8
"""Number of facts, those with the smallest positive margins, that are decoded again in a batch of one: floating-point
sums depend on the batch size."""

REACH_ELEMENTS = 1 << 26
"""Largest tokens x vocabulary for which the reach of stubborn tokens is computed; beyond, it stays unknown."""

SAFETY = 2.0
"""A certificate also needs this many times the largest difference observed, on this model and these facts, between
teacher-forced and key-value-cached losses, since other batch sizes and machines round differently again."""


def measure(
    base: Base,
    facts: Sequence[EncodedFact],
    *,
    decode: bool,
    explain: bool = False,
    decoded: dict[int, Decoded] | None = None,
) -> RecallReport:
    """Per-token diagnosis of `facts` on the base with whatever is attached to it.

    Without `decode`, `acc_em`, `acc_token`, `exact` and `certified` are None: nothing is known about verbatim recall.
    `explain` costs more time. It finds the stubborn tokens that no adapter can order and the failures that correcting
    one token would have avoided, and it decodes the smallest margins again in batches of one. `decoded`, row -> its
    decoding, is used instead of decoding here.
    Raises DataError for a fact longer than the context, and for a loss that is not finite.
    """
    if base.context is not None:
        check_context(facts, base.context)
    with frozen(base.model), torch.no_grad():
        measured = [
            replace(tokens, faithful=survives(base, fact))
            for fact, tokens in zip(facts, teacher_forced(base, facts), strict=True)
        ]
        rounding = None
        if decode:
            decoded = greedy(base, facts, range(len(facts))) if decoded is None else decoded
            rounding = _rounding(measured, decoded)
            measured = [
                with_output(measured[row], fact, decoded[row].emitted, base.stops) for row, fact in enumerate(facts)
            ]
            if explain:
                alone = greedy(base, facts, _thinnest(measured), side_by_side=1)
                rounding = max(rounding, _rounding(measured, alone))
                measured = _with_mended(base, facts, measured)
        if explain:
            measured = _with_reach(base, facts, measured)
    tolerance = max(TOLERANCE[base.judged_in], SAFETY * (rounding or 0.0))
    return diagnose(facts, measured, tolerance=tolerance, dtype=base.judged_in, rounding=rounding)


def token_texts(base: Base, facts: Sequence[EncodedFact]) -> dict[str, tuple[str, ...]]:
    """Record id -> its target tokens as text, one string per token: sensitive. Raises ModelError.

    A token that holds only part of a character becomes a replacement character.
    """
    return {
        fact.id: tuple(decode_ids(base.tokenizer, fact.id, [token], special=False) for token in fact.target)
        for fact in facts
    }


def _rounding(measured: Sequence[TokenRecall], decoded: dict[int, Decoded]) -> float:
    """Largest difference, in nats, between the teacher-forced and the cached loss of a token that is ordered by either:
    only there can rounding make a certificate wrong."""
    return max(
        (
            abs(forced - cached)
            for row, one in decoded.items()
            for forced, cached in zip(measured[row].nll, one.nll, strict=False)
            if is_ordered(min(forced, cached))
        ),
        default=0.0,
    )


def _thinnest(measured: Sequence[TokenRecall]) -> list[int]:
    """Rows of the records with the smallest positive margins, which too small a tolerance would certify first."""
    likely = [row for row, tokens in enumerate(measured) if all(tokens.decoded or ()) and is_ordered(max(tokens.nll))]
    return sorted(likely, key=lambda row: -max(measured[row].nll))[:DECODED_ALONE]


def _with_mended(base: Base, facts: Sequence[EncodedFact], measured: Sequence[TokenRecall]) -> list[TokenRecall]:
    """`measured` with `mended`: whether correcting the first wrong token is enough.

    After that token the true prefix holds again, and greedy decoding follows the argmax. So a record with a second
    top-1 miss cannot be mended; the others are decoded again from the token after their first wrong one.
    """
    again: dict[int, EncodedFact] = {}
    answers: dict[int, bool] = {}
    for row, (fact, tokens) in enumerate(zip(facts, measured, strict=True)):
        if tokens.decoded is None or all(tokens.decoded):
            continue
        after = tokens.decoded.index(False) + 1
        answers[row] = tokens.ended != "inside" and all(tokens.top1[after:])
        if answers[row] and after < fact.length:
            again[row] = replace(fact, prompt_length=fact.prompt_length + after)
    redone = greedy(base, list(again.values()), range(len(again)))
    for place, (row, rest) in enumerate(again.items()):
        answers[row] = redone[place].emitted == rest.target
    return [replace(tokens, mended=answers.get(row)) for row, tokens in enumerate(measured)]


def _with_reach(base: Base, facts: Sequence[EncodedFact], measured: Sequence[TokenRecall]) -> list[TokenRecall]:
    """`measured` with the positions of stubborn tokens that no adapter below the head can order, if known.

    A token that is ordered anywhere in these facts is reachable, so it needs no search.
    """
    stubborn: set[int] = set()
    ordered: set[int] = set()
    for fact, tokens in zip(facts, measured, strict=True):
        for token, nll in zip(fact.target, tokens.nll, strict=True):
            (ordered if is_ordered(nll) else stubborn).add(token)
    beyond = _beyond_reach(base, sorted(stubborn - ordered))
    if beyond is None:
        return list(measured)
    return [
        replace(
            tokens,
            unreachable=tuple(
                t for t, nll in enumerate(tokens.nll) if not is_ordered(nll) and fact.target[t] in beyond
            ),
        )
        for fact, tokens in zip(facts, measured, strict=True)
    ]


def _beyond_reach(base: Base, tokens: Sequence[int]) -> set[int] | None:
    """Those of `tokens` that provably have p <= 1/2 at every hidden state; None if that cannot be determined."""
    if not tokens:
        return set()
    try:
        head = frozen_head(base.model)
    except ModelError:  # the head is not the frozen one: it is adapted too, or of an unknown kind
        return None
    if len(tokens) * len(head.weight) > REACH_ELEMENTS:
        return None
    bounds = reach_by_lines(head, list(tokens), (0.5,))
    return set(bounds.tokens[bounds.upper <= 0.5].tolist())
