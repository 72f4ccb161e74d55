"""Recall, as the template and the script need it: overview, records, tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from memlaw.core.errors import DataError
from memlaw.core.recall import LN2, Reason, RecallReport, RecordRecall, is_ordered
from memlaw.diagnosis.documents import Texts
from memlaw.diagnosis.patterns import Patterns, patterns
from memlaw.diagnosis.verdicts import worst
from memlaw.report import figures
from memlaw.report.figure import plot
from memlaw.report.figures import Strip
from memlaw.report.words import count, number

WORST_RECORDS = 12
"""Number of records shown token by token, the worst first, on paper or without the script."""

SHOWN_TOKENS = 60_000
"""Maximum number of target tokens in the list of records; with more, the page would be too large to send."""


def recall_view(recall: RecallReport, texts: Texts | None, advice: Sequence[str]) -> dict[str, Any]:
    """Overview, worst records and the data of the list; pass `texts` only if target text may be shown.

    Raises DataError for a record without exactly one text for each of its tokens.
    """
    shown, common = worst(recall, WORST_RECORDS), patterns(recall)
    listed = _listed(recall)
    return {
        "report": recall,
        "ln2": LN2,
        "patterns": common,
        "causes": _causes(recall, common),
        "advice": advice,
        "figures": _recall_figures(recall, shown[0], common),
        "rows": [_record_view(item, texts) for item in shown],
        "list": [_list_view(item, texts) for item in listed],
        "unlisted": recall.records - len(listed),
    }


_CAUSES: dict[Reason, str] = {
    "other_text": "the tokenizer changes the target's text",
    "stubborn": "a token with p at most 1/2",
    "unreachable": "a token that no adapter can raise above p = 1/2",
    "stopped_early": "the output ends too early",
    "ran_on": "the output does not end at the end of the target",
    "after_end": "the target continues after an end of sequence",
    "near_tie": "two tokens so close that rounding decides between them",
    "unproven": "verbatim, but with a token of p at most 1/2",
    "too_thin": "ordered, but by less than the rounding error",
}


def _causes(recall: RecallReport, common: Patterns) -> list[tuple[str, str]]:
    """(cause, how often) for the records that are not certified, and what they have in common."""
    rows = [(_CAUSES[reason], count(often, "record")) for reason, often in _by_count(recall).items()]
    if common.one_token_short:
        rows.append(
            (
                "one token short of verbatim",
                f"{number(common.one_token_short)} of {count(common.failures or 0, 'failure')}",
            )
        )
    if common.unreachable is not None and common.stubborn:
        rows.append(
            (
                "unreachable for any adapter",
                f"{number(common.unreachable)} of {count(common.stubborn, 'stubborn token')}",
            )
        )
    if (related := common.stubborn_vs_failure) is not None:
        spread = f"(95 %: {number(related.low, 2)} to {number(related.high, 2)}, {count(related.n, 'record')})"
        rows.append(
            ("earliest stubborn token and first failure", f"Spearman correlation {number(related.value, 2)} {spread}")
        )
    return rows


def _by_count(recall: RecallReport) -> dict[Reason, int]:
    return dict(Counter(item.reason for item in recall.items if item.reason is not None).most_common())


def _listed(recall: RecallReport) -> tuple[RecordRecall, ...]:
    """The worst records, up to `SHOWN_TOKENS` tokens in all."""
    ranked = worst(recall, recall.records)
    ends = accumulate(item.length for item in ranked)
    return ranked[: sum(end <= SHOWN_TOKENS for end in ends)]


def _list_view(item: RecordRecall, texts: Texts | None) -> dict[str, Any]:
    """One record for the script. `kinds` has a letter per token: o ordered, s stubborn; a capital if decoded wrong."""
    hits = item.tokens.decoded or (True,) * item.length
    kinds = ("o" if is_ordered(nll) else "s" for nll in item.tokens.nll)
    return {
        "id": item.id,
        "verdict": _verdict(item),
        "failed": item.exact is False,
        "decoded": item.exact is not None,
        "margin": round(item.margin, 4),
        "stubborn": item.earliest_stubborn,
        "failure": item.first_failure,
        "edits": item.edits,
        "short": item.exact is False and item.one_token_short is True,
        "log_p": round(item.log_p, 3),
        "expected": round(item.expected_tokens, 2),
        "why": item.why,
        "nll": [_short(nll) for nll in item.tokens.nll],
        "rival": None if item.tokens.rival is None else [_short(nll) for nll in item.tokens.rival],
        "kinds": "".join(kind if hit else kind.upper() for kind, hit in zip(kinds, hits, strict=True)),
        "unreachable": item.tokens.unreachable or (),
        "texts": None if texts is None else list(texts.get(item.id, ())),
    }


def _short(nll: float) -> float:
    return float(f"{nll:.3g}")


def _recall_figures(recall: RecallReport, weakest: RecordRecall, common: Patterns) -> list[dict[str, Any]]:
    strip = figures.strip_curve(weakest)
    size = figures.positions_size(len(strip.p))
    mark = (
        "" if weakest.first_failure is None else " The triangle marks the first token that greedy decoding gets wrong."
    )
    caption = f"Probability of each target token of the weakest record. Dashed: p = 1/2.{mark}"
    shown = [plot(figures.sketch(figures.draw_strip, strip, size=size), "strip", caption)]
    troubled = any(item.earliest_stubborn is not None or item.exact is False for item in recall.items)
    if troubled and recall.records > 1:
        failures = figures.failure_histogram(recall)
        size = figures.positions_size(len(failures.first_failure))
        caption = "Where records fail: number of records whose first failure is at each target position."
        shown.insert(0, plot(figures.sketch(figures.draw_failures, failures, size=size), "failures", caption))
    if common.stubborn_vs_failure is not None:
        caption = (
            "Failing records by their earliest stubborn token and the first failure of greedy decoding; larger dots "
            "are more records. On the dashed line, decoding fails at the first stubborn token."
        )
        scatter = figures.sketch(figures.draw_failure_scatter, figures.failure_scatter(recall))
        shown.insert(1, plot(scatter, "scatter", caption))
    return shown


def _record_view(item: RecordRecall, texts: Texts | None) -> dict[str, Any]:
    strip = figures.strip_curve(item)
    return {
        "item": item,
        "verdict": _verdict(item),
        "bars": [_bar_view(strip, index) for index in range(len(strip.p))],
        "text": None if texts is None else _text_view(item, texts.get(item.id, ())),
    }


def _bar_view(strip: Strip, index: int) -> dict[str, Any]:
    start, last = int(strip.start[index]), int(strip.stop[index]) - 1
    where = f"position {start:,}" if start == last else f"weakest of positions {start:,} to {last:,}"
    kind = "ordered" if strip.ordered[index] else "stubborn"
    wrong = bool(strip.wrong[index])
    p = float(strip.p[index])
    return {
        "p": p,
        "kind": kind,
        "wrong": wrong,
        "title": f"{where}: p {p:.3f}, {kind}{', decoded wrong' if wrong else ''}",
    }


def _text_view(item: RecordRecall, pieces: Sequence[str]) -> list[tuple[str, str]]:
    """(text, kind) of every target token. Raises DataError."""
    if len(pieces) != item.length:
        raise DataError(
            f"Record {item.id!r} has {item.length} target tokens but {len(pieces)} texts of tokens, so colours would "
            f"mark the wrong ones. Use the memory set and tokenizer of the recall."
        )
    return [
        (text, "ordered" if is_ordered(nll) else "stubborn") for text, nll in zip(pieces, item.tokens.nll, strict=True)
    ]


def _verdict(item: RecordRecall) -> str:
    if item.certified:
        return "certified"
    if item.exact:
        return "verbatim, not certified"
    if item.reason == "other_text":
        return "other text"
    if item.exact is None:
        return "ordered, not decoded" if item.margin > 0 else "stubborn, not decoded"
    return "one token short" if item.one_token_short else "wrong"
