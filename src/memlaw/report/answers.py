"""The three answers at the top of the page, and the few numbers under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlaw.core.recall import RecallReport
from memlaw.diagnosis.verdicts import position_counts, stubborn_counts
from memlaw.report.content import ReportContent
from memlaw.report.words import count, interval, number, plan_size, share


def will_it_fit(content: ReportContent) -> str:
    if content.plan is not None:
        return _plan_sentence(content.plan)
    if not content.fits:
        return "Unknown: no law was fitted, so the rank cannot be computed. Probe a grid, then run memlaw fit."
    leading = content.fits[0]
    ranks, lengths = [p.rank for p in leading.points], [p.length for p in leading.points]
    over = (
        f" over ranks {min(ranks):g} to {max(ranks):g} and lengths {min(lengths):g} to {max(lengths):g}"
        if ranks
        else ""
    )
    r2 = leading.summary.get("r2")
    if r2 is None:
        return f"Unknown: {leading.summary.get('status')}"
    return (
        f"Not planned yet: the law ({leading.name}) has R² {number(r2)}{over}. Run memlaw plan to apply it to a memory "
        "set."
    )


def _plan_sentence(plan: Mapping[str, Any]) -> str:
    rank = plan["rank"]
    if rank.get("value") is None:
        answer = f"Not at any rank this law covers: {plan_size(plan)}."
    else:
        answer = f"Yes, at rank {number(rank['value'])}{interval(rank)}: {plan_size(plan)}."
    doubts = (plan.get("reason"), plan.get("extrapolates"))
    return " ".join([answer, *(doubt for doubt in doubts if isinstance(doubt, str))])


def did_it_stick(content: ReportContent) -> str:
    recall = content.recall
    if recall is None:
        return "Unknown: recall was not measured. Run memlaw recall with --decode."
    if recall.certified is None:
        return (
            f"Not proven: {recall.ordered:,} of {count(recall.tokens, 'token')} have p > 1/2, but without decoding no "
            f"record is certified. Run memlaw recall with --decode."
        )
    whole = count(recall.records, "record")
    if recall.certified == recall.records:
        return (
            f"Yes. {'All ' if recall.records > 1 else ''}{whole} came back verbatim and certified: every token has "
            f"p > 1/2, by {number(recall.min_margin)} nats or more, and greedy decoding in {recall.dtype} agrees."
        )
    exact = sum(bool(item.exact) for item in recall.items)
    if exact == 0:
        return f"No. None of {whole} came back verbatim under greedy decoding in {recall.dtype}."
    return (
        f"{'Yes' if exact == recall.records else 'Partly'}. {exact:,} of {whole} came back "
        f"verbatim under greedy decoding in {recall.dtype}; {recall.certified:,} of them are certified (every token "
        f"has p > 1/2, by more than {number(recall.tolerance, 2)} nats)."
    )


def which_did_not(recall: RecallReport | None) -> str:
    if recall is None:
        return "Unknown: recall was not measured."
    stubborn, counts = recall.tokens - recall.ordered, stubborn_counts(recall)
    sentences = [f"None: {count(recall.tokens, 'token')}, each with p > 1/2."]
    if stubborn:
        affected = f"{sum(map(bool, counts)):,} of {count(recall.records, 'record')}"
        sentences = [f"{stubborn:,} of {count(recall.tokens, 'token')} are stubborn (p ≤ 1/2), in {affected}."]
    if 1 in counts:
        sentences.append(f"In {count(counts.count(1), 'record')}, a single token is stubborn.")
    failures = position_counts(item.first_failure for item in recall.items)
    if failures:
        position = max(failures, key=lambda at: failures[at])
        often = f"most often at position {position:,} ({count(failures[position], 'record')})"
        sentences.append(f"Greedy decoding first goes wrong {often}.")
    return " ".join(sentences)


def key_numbers(content: ReportContent) -> list[tuple[str, str, str]]:
    """(label, value, note) of the key numbers at the top of the page."""
    numbers = []
    grid = len(content.cells) if content.grid is None else content.grid
    if grid:
        finished = sum(cell.status == "finished" for cell in content.cells)
        numbers.append(("cells finished", f"{finished:,}", f"of {grid:,}"))
    if content.fits and content.fits[0].summary.get("r2") is not None:
        leading = content.fits[0]
        numbers.append(("R² of the law", number(leading.summary.get("r2"), 4), leading.name))
    if content.plan is not None:
        rank = content.plan["rank"]
        numbers.append(("rank planned", number(rank.get("value")), interval(rank).strip(" ()")))
    recall = content.recall
    if recall is not None:
        numbers.append(
            ("tokens ordered", share(recall.ordered / recall.tokens), f"{recall.ordered:,} of {recall.tokens:,}")
        )
        if recall.acc_em is not None and recall.certified is not None:
            numbers.append(
                ("records verbatim", share(recall.acc_em), f"{recall.certified:,} of {recall.records:,} certified")
            )
        numbers.append(("smallest margin", number(recall.min_margin), "nats; above 0: all ordered"))
    return numbers
