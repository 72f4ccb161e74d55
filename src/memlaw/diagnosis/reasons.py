"""Why a record is not certified: a keyword, and a sentence with the position and the probabilities.

The sentence never contains text of the target or of what was emitted instead, since either can reveal a secret.
"""

from __future__ import annotations

import math

from memlaw.core.recall import LN2, Reason, TokenRecall, is_ordered


def reason_of(tokens: TokenRecall, tolerance: float) -> tuple[Reason, str] | None:
    """The keyword and the sentence; None if the record is certified or, without decoding, has every token ordered with
    enough margin. `tolerance` is in nats, as for a certificate."""
    if tokens.faithful is False:
        return "other_text", (
            "The tokenizer changes this target: its tokens decode to another text, so it cannot come back verbatim, "
            "even with every token recalled. `memlaw check` says what changes."
        )
    stubborn = next((t for t, nll in enumerate(tokens.nll) if not is_ordered(nll)), None)
    if tokens.decoded is not None and not all(tokens.decoded):
        return _failure(tokens, tokens.decoded.index(False))
    if stubborn is not None:
        return _doubt(tokens, stubborn)
    margin = LN2 - max(tokens.nll)
    if margin <= tolerance:
        weakest = max(range(len(tokens.nll)), key=tokens.nll.__getitem__)
        return "too_thin", (
            f"Every token is ordered, but position {weakest} has a margin of only {margin:.2g} nats. Teacher-forced "
            f"and cached decoding round differently here, so {tolerance:.2g} are needed."
        )
    return None


def _failure(tokens: TokenRecall, at: int) -> tuple[Reason, str]:
    """The reason why greedy decoding first went wrong at position `at`."""
    where = f"Decoding goes wrong at position {at}"
    if tokens.ended == "inside":
        return "after_end", (
            f"The target continues at position {at}, after an end-of-sequence token, and nothing is emitted after "
            "that. Remove the token from the target."
        )
    if tokens.top1[at]:
        return "near_tie", (
            f"{where}, although teacher-forced the target's token was the most likely ({_p(tokens.nll[at])}"
            f"{_other(tokens, at)}): the two computations differ by rounding. Measure in float32, or train with a "
            "margin."
        )
    rest = " Everything after it is recalled once this one token is corrected." if tokens.mended else ""
    if at in (tokens.unreachable or ()):
        return "unreachable", (
            f"{where}: with the frozen head, no adapter can bring its token above p = 1/2.{rest} Reword the target, or "
            "train the head as well."
        )
    odds = f"the target's token has {_p(tokens.nll[at])}{_other(tokens, at)}"
    if tokens.ended == "early":
        return "stopped_early", f"{where}: the model ends its output too early; {odds}.{rest}"
    if tokens.ended == "late":
        return "ran_on", f"{where}: the model continues where its output should end; {odds}."
    return "stubborn", f"{where}: {odds}.{rest}"


def _doubt(tokens: TokenRecall, at: int) -> tuple[Reason, str]:
    """The reason why a record is in doubt: a stubborn token at position `at`, decoded correctly or not decoded."""
    odds = f"Position {at} has {_p(tokens.nll[at])}{_other(tokens, at)}"
    if tokens.decoded is not None:
        return "unproven", f"Recalled verbatim this time, but not guaranteed: {odds[0].lower()}{odds[1:]}, at most 1/2."
    if at in (tokens.unreachable or ()):
        return "unreachable", (f"{odds}; with the frozen head, no adapter can bring its token above p = 1/2.")
    return "stubborn", f"{odds}, at most 1/2; it was not decoded."


def _other(tokens: TokenRecall, at: int) -> str:
    return "" if tokens.rival is None else f", another token {_p(tokens.rival[at])}"


def _p(nll: float) -> str:
    return f"p = {math.exp(-nll):.3g}"
