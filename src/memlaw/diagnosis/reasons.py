"""Why a record is not certified: one word, and one sentence that names the position and the probabilities.

The sentence never holds text of the target, nor of what was emitted in its place: that can give a secret away.
"""

from __future__ import annotations

import math

from memlaw.core.recall import LN2, Reason, TokenRecall, is_ordered


def reason_of(tokens: TokenRecall, tolerance: float) -> tuple[Reason, str] | None:
    """The word and the sentence, or None where the record is certified (or, not decoded, where nothing speaks
    against it). `tolerance` in nats, as for a certificate."""
    stubborn = next((t for t, nll in enumerate(tokens.nll) if not is_ordered(nll)), None)
    if tokens.decoded is not None and not all(tokens.decoded):
        return _of_failure(tokens, tokens.decoded.index(False))
    if stubborn is not None:
        return _of_doubt(tokens, stubborn)
    margin = LN2 - max(tokens.nll)
    if margin <= tolerance:
        weakest = max(range(len(tokens.nll)), key=tokens.nll.__getitem__)
        return "too_thin", (
            f"Every token is ordered, but position {weakest} by {margin:.2g} nats only; here teacher-forced and cached "
            f"decoding differ by so much that {tolerance:.2g} are needed."
        )
    return None


def _of_failure(tokens: TokenRecall, at: int) -> tuple[Reason, str]:
    """Greedy decoding first went wrong at position `at`."""
    where = f"Decoding goes wrong at position {at}"
    if tokens.ended == "inside":
        return "after_end", (
            f"The target goes on at position {at}, behind an end-of-sequence token, after which nothing is emitted. "
            "Take that token out of the target."
        )
    if tokens.top1[at]:
        return "near_tie", (
            f"{where}, where teacher-forced the target's token was the most likely ({_p(tokens.nll[at])}"
            f"{_other(tokens, at)}): the two ways of computing it differ by rounding. Judge in float32, or train "
            "with a margin."
        )
    rest = " All that follows comes back once this one token is put right." if tokens.mended else ""
    if at in (tokens.unreachable or ()):
        return "unreachable", (
            f"{where}: the frozen head can give its token no p above 1/2, whatever the adapter does.{rest} Word the "
            "target differently, or adapt the head as well."
        )
    odds = f"the target's token has {_p(tokens.nll[at])}{_other(tokens, at)}"
    if tokens.ended == "early":
        return "stopped_early", f"{where}: the model ends its output there; {odds}.{rest}"
    if tokens.ended == "late":
        return "ran_on", f"{where}: the model goes on where its output should end; {odds}."
    return "stubborn", f"{where}: {odds}.{rest}"


def _of_doubt(tokens: TokenRecall, at: int) -> tuple[Reason, str]:
    """The first stubborn token is at position `at`, and decoding, if any, got it right all the same."""
    odds = f"Position {at} has {_p(tokens.nll[at])}{_other(tokens, at)}"
    if tokens.decoded is not None:
        return "unproven", f"Verbatim here, but nothing guarantees it: {odds[0].lower()}{odds[1:]}, at most 1/2."
    if at in (tokens.unreachable or ()):
        return "unreachable", (
            f"{odds}, and the frozen head can give its token no p above 1/2, whatever the adapter does."
        )
    return "stubborn", f"{odds}, at most 1/2; what decoding makes of it was not asked."


def _other(tokens: TokenRecall, at: int) -> str:
    return "" if tokens.rival is None else f", another token {_p(tokens.rival[at])}"


def _p(nll: float) -> str:
    return f"p = {math.exp(-nll):.3g}"
