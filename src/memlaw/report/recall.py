"""The recall as the template and the script take it: overview, record, token."""

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
"""Records shown token by token, the worst first, where the page is printed or runs no script."""

SHOWN_TOKENS = 60_000
"""Target tokens, in the worst records, that the page can show one by one; more would make it too large to send."""


def recall_view(recall: RecallReport, texts: Texts | None, advice: Sequence[str]) -> dict[str, Any]:
    """Overview, worst records and the data of the list; `texts` only where target text may be shown.

    Raises DataError for a record whose text has not one string for each of its tokens.
    """
    shown, found = worst(recall, WORST_RECORDS), patterns(recall)
    listed = _listed(recall)
    return {
        "report": recall,
        "ln2": LN2,
        "patterns": found,
        "causes": _causes(recall, found),
        "advice": advice,
        "figures": _recall_figures(recall, shown[0], found),
        "rows": [_record_view(item, texts) for item in shown],
        "list": [_list_view(item, texts) for item in listed],
        "unlisted": recall.records - len(listed),
    }


_CAUSES: dict[Reason, str] = {
    "stubborn": "a token with p at most 1/2",
    "unreachable": "a token that no adapter can give p > 1/2",
    "stopped_early": "the output ends too early",
    "ran_on": "the output does not end where it should",
    "after_end": "the target goes on behind an end of sequence",
    "near_tie": "two tokens so close that rounding decides",
    "unproven": "verbatim, but a token with p at most 1/2",
    "too_thin": "ordered, but by less than rounding can take away",
}


def _causes(recall: RecallReport, found: Patterns) -> list[tuple[str, str]]:
    """(cause, how often) of the records that are not certified, and what else they have in common."""
    rows = [(_CAUSES[reason], count(often, "record")) for reason, often in _by_count(recall).items()]
    if found.one_token_short:
        rows.append(
            (
                "one token short of verbatim",
                f"{number(found.one_token_short)} of {count(found.failures or 0, 'failure')}",
            )
        )
    if found.unreachable is not None and found.stubborn:
        rows.append(
            ("out of reach of any adapter", f"{number(found.unreachable)} of {count(found.stubborn, 'stubborn token')}")
        )
    if (related := found.stubborn_vs_failure) is not None:
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
    """One record for the script. `kinds` has a letter a token: o ordered, s stubborn; a capital where decoded wrong."""
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


def _recall_figures(recall: RecallReport, weakest: RecordRecall, found: Patterns) -> list[dict[str, Any]]:
    strip = figures.strip_curve(weakest)
    size = figures.positions_size(len(strip.p))
    mark = (
        "" if weakest.first_failure is None else " The triangle marks the first token that greedy decoding got wrong."
    )
    caption = f"Probability of each target token of the weakest record. Dashed: p = 1/2.{mark}"
    shown = [plot(figures.sketch(figures.draw_strip, strip, size=size), "strip", caption)]
    troubled = any(item.earliest_stubborn is not None or item.exact is False for item in recall.items)
    if troubled and recall.records > 1:
        failures = figures.failure_curve(recall)
        size = figures.positions_size(len(failures.first_failure))
        caption = "Where records break: how many have their first trouble at each target position."
        shown.insert(0, plot(figures.sketch(figures.draw_failures, failures, size=size), "failures", caption))
    if found.stubborn_vs_failure is not None:
        caption = (
            "Failing records by their earliest stubborn token and the first failure of decoding; larger: more records. "
            "On the dashed line the first stubborn token was where decoding went wrong."
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
    where = f"position {start:,}" if start == last else f"positions {start:,} to {last:,}, weakest"
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
    """(text, kind) of every target token."""
    if len(pieces) != item.length:
        raise DataError(
            f"Record {item.id!r} has {item.length} target tokens but {len(pieces)} pieces of text, so colours would "
            f"fall on the wrong ones. Pass the memory set and tokenizer that were recalled."
        )
    return [
        (text, "ordered" if is_ordered(nll) else "stubborn") for text, nll in zip(pieces, item.tokens.nll, strict=True)
    ]


def _verdict(item: RecordRecall) -> str:
    if item.certified:
        return "certified"
    if item.exact:
        return "verbatim, not certified"
    if item.exact is None:
        return "ordered, not decoded" if item.margin > 0 else "stubborn, not decoded"
    return "one token short" if item.one_token_short else "wrong"
