"""One fact asked of a server: from what it says to the measurements that a verdict needs.

Greedy decoding is asked for once. As long as its tokens are those of the target, they were generated after the true
prefix, so their log-probabilities are the teacher-forced ones. Past a first wrong token they are not: then the server
is asked for the log-probabilities of the target itself, where it has these (vLLM, SGLang), or to go on from the
target's own tokens, as often as it goes wrong. What it does not say stays unknown, and counts as p = 1/2: neither
ordered nor certified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memlaw.core.errors import ServerError
from memlaw.core.recall import LN2, TokenRecall
from memlaw.diagnosis.output import NOTHING, with_output
from memlaw.serving.dialects.base import Dialect
from memlaw.serving.question import Completion, Question, Said, Scored, as_scored, matching

OTHER = -2
"""In the place of a wrong token whose id the server does not tell; no token has this id."""


@dataclass(frozen=True)
class Asked:
    """What a server said about one fact."""

    tokens: TokenRecall
    """With the outcome of decoding. `mended` is None where something is unknown."""
    unknown: tuple[int, ...]
    """Positions whose probability the server did not say; `tokens.nll` is ln 2 there."""


def ask(server: Dialect, question: Question, stops: Sequence[int]) -> Asked:
    """Ask for one fact. `stops` are the ids at which generation is to end. Raises ServerError."""
    completion, scored, emitted = _greedy(server, question, stops)
    scored += _rest(server, question, completion, len(scored))
    tokens = with_output(_measured(scored), question.fact, emitted, stops)
    unknown = tuple(at for at, one in enumerate(scored) if one.logprob is None)
    return Asked(_mended(tokens, unknown), unknown)


def ask_again(server: Dialect, question: Question, stops: Sequence[int]) -> Asked:
    """As `ask`, but the tokens after a first wrong one are not asked for: `nll` ends before it. Raises ServerError."""
    _, scored, emitted = _greedy(server, question, stops)
    return Asked(with_output(_measured(scored), question.fact, emitted, stops), ())


def _greedy(server: Dialect, question: Question, stops: Sequence[int]) -> tuple[Completion, list[Scored], list[int]]:
    """What the server generated, the measurements of the target's tokens before a wrong one, and an id for each."""
    expected = question.expected(by_ids=server.by_ids)
    completion = server.complete(question, 0, len(expected))
    right = matching(completion.said, expected)
    emitted = _emitted(completion, question, right, stops, by_ids=server.by_ids)
    scored = [as_scored(said, due) for said, due in zip(completion.said[:right], expected, strict=False)]
    if right < len(expected) and emitted[right] == question.fact.target[right]:  # an end without a token of its own
        scored.append(Scored(None, True, None))
    return completion, scored, emitted


def _emitted(
    completion: Completion, question: Question, right: int, stops: Sequence[int], *, by_ids: bool
) -> list[int]:
    """An id for each target token: the one generated, `OTHER` where only its text is known, `NOTHING` after the end."""
    target = question.fact.target
    rest = [said.token if by_ids and isinstance(said.token, int) else OTHER for said in completion.said[right:]]
    ids = [*target[:right], *rest][: len(target)]
    if len(ids) == len(target):
        return ids
    if not completion.ended:
        raise ServerError(
            f"Record {question.fact.id!r}: the server stopped after {len(ids)} of {len(target)} tokens although "
            "nothing ended the answer. Give it a longer context, or a higher limit on what it generates."
        )
    if not ids or ids[-1] not in stops:  # the token that ended it is not among those returned
        due = target[len(ids)]
        ids.append(due if due in stops else next(iter(stops), OTHER))
    return ids + [NOTHING] * (len(target) - len(ids))


def _rest(server: Dialect, question: Question, completion: Completion, start: int) -> list[Scored]:
    """The target's tokens from `start` on, the first of which was not generated."""
    if start == question.fact.length:
        return []
    scored = server.score(question, start)
    if scored is not None:
        return scored
    if not server.by_ids:  # going on from a text might tokenise it otherwise
        first = completion.said[start : start + 1]
        known = [as_scored(one, question.pieces[start]) for one in first] or [_UNKNOWN]
        return known + [_UNKNOWN] * (question.fact.length - start - 1)
    return _by_continuing(server, question, completion, start)


def _by_continuing(server: Dialect, question: Question, completion: Completion, start: int) -> list[Scored]:
    """As `_rest`: each wrong token is replaced by the target's, and the server goes on from there.

    It is asked for one token after a wrong one, and for twice as many each time that all were right.
    """
    target = question.fact.target
    said, at, length = completion.said[start:], start, 1
    scored: list[Scored] = []
    while True:
        right = matching(said, target[at:])
        scored += [as_scored(one, due) for one, due in zip(said[:right], target[at:], strict=False)]
        at += right
        if at == len(target):
            return scored
        if right < len(said) or not said:
            scored.append(_at_wrong(server, question, at, said[right : right + 1]))
            at, length = at + 1, 1
            if at == len(target):
                return scored
        else:
            length *= 2
        said = server.complete(question, at, min(length, len(target) - at)).said


def _at_wrong(server: Dialect, question: Question, at: int, said: Sequence[Said]) -> Scored:
    """The target's token `at`, in whose place the server generated another, or nothing."""
    found = next((as_scored(one, question.fact.target[at]) for one in said), _UNKNOWN)
    if found.logprob is not None:
        return found
    return Scored(server.force(question, at), found.top, found.rival)


_UNKNOWN = Scored(None, False, None)


def _measured(scored: Sequence[Scored]) -> TokenRecall:
    rivals = [one.rival for one in scored]
    return TokenRecall(
        nll=tuple(LN2 if one.logprob is None else -one.logprob for one in scored),
        top1=tuple(one.top for one in scored),
        rival=None if None in rivals else tuple(-rival for rival in rivals if rival is not None),
    )


def _mended(tokens: TokenRecall, unknown: Sequence[int]) -> TokenRecall:
    """`tokens` with `mended`: once its first wrong token is corrected, decoding follows the most probable ones."""
    if tokens.decoded is None or all(tokens.decoded):
        return tokens
    after = tokens.decoded.index(False) + 1
    if any(at >= after for at in unknown):
        return tokens
    return replace(tokens, mended=tokens.ended != "inside" and all(tokens.top1[after:]))
