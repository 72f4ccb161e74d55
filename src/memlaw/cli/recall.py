"""memlaw recall: did it stick?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.options import AsJson, Inputs, ShowText
from memlaw.cli.output import SHOWN, aligned_rows, counted, emit, note, paragraph, printable
from memlaw.core.canonical import canonical_json
from memlaw.core.recall import RecallReport

if TYPE_CHECKING:
    from memlaw.core.recall import RecordRecall
    from memlaw.diagnosis.patterns import Patterns


def recall(
    *,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Adapter to judge, memlaw's or PEFT's.  [default: the bare model]"),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode too: only then can a fact be certified.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write every token's numbers here; `memlaw report` shows DIR/recall.json.")
    ] = None,
    show_text: ShowText = False,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Did it stick? Per-token diagnosis of DATA, and a certificate for each fact that will come back verbatim."""
    from contextlib import nullcontext

    from memlaw.adapter.peft import attach
    from memlaw.core.files import write_text
    from memlaw.diagnosis.documents import report_to_dict
    from memlaw.diagnosis.measure import measure, token_texts, unfaithful

    base, memory_set, facts = inputs.load()
    if lossy := unfaithful(base, memory_set, facts):
        note(
            f"Warning: the tokens of {len(lossy)} of {len(facts)} facts ({', '.join(map(repr, lossy[:3]))}"
            f"{', ...' if len(lossy) > 3 else ''}) do not spell their targets: the tokenizer drops or changes "
            "characters. A certificate is about the tokens."
        )
    with nullcontext() if adapter is None else attach(base, adapter):
        report = measure(base, facts, decode=decode, explain=True)
    advice = _advice(report, adapter)
    document = report_to_dict(report, texts=token_texts(base, facts) if show_text else None, advice=advice)
    if out is not None:
        write_text(out, canonical_json(document), private=show_text)
    emit(as_json, document, recall_lines(report, advice))


def _advice(report: RecallReport, adapter: Path | None) -> list[str]:
    """What would help, where an adapter was judged: the bare base is not expected to recall anything."""
    from memlaw.adapter.info import load_info, recorded_training
    from memlaw.planning.advice import advise

    if adapter is None:
        return []
    info = load_info(adapter)
    if info is None:
        return [str(a) for a in advise(report)]
    config, warnings = recorded_training(info)
    for warning in warnings:
        note(f"Warning: {warning}")
    return [str(a) for a in advise(report, rank=info.rank, placement=info.placement, config=config)]


def recall_lines(report: RecallReport, advice: Sequence[str] = ()) -> Iterator[str]:
    """Did it stick? And, in sentences of `advice`, what to do next."""
    from memlaw.diagnosis.patterns import patterns
    from memlaw.diagnosis.verdicts import stubborn_counts, worst

    records = counted(report.records, "record")
    yield f"{records}, {counted(report.tokens, 'target token')}, judged in {report.dtype}."
    yield ""
    yield from aligned_rows({**_verbatim(report), **_probabilities(report), **_causes(patterns(report))})
    stubborn = dict(zip((item.id for item in report.items), stubborn_counts(report), strict=True))
    failing = {item.id for item in report.items if item.exact is False or stubborn[item.id]}
    if failing:
        yield ""
        yield "Furthest from recall (positions count from 0):"
        listed = [item for item in worst(report, SHOWN) if item.id in failing]
        yield from aligned_rows({printable(item.id): _failure(item, stubborn[item.id]) for item in listed})
    if len(failing) > SHOWN:
        yield f"  ... and {len(failing) - SHOWN:,} more"
    for sentence in advice:
        yield ""
        yield from paragraph(sentence)


def _verbatim(report: RecallReport) -> dict[str, str]:
    if report.acc_em is None or report.acc_token is None:
        return {"recalled verbatim": "not known: add --decode", "certified": "not known: add --decode"}
    exact, records = sum(item.exact is True for item in report.items), counted(report.records, "record")
    return {
        "recalled verbatim": f"{exact:,} of {records} ({report.acc_em:.1%}) by greedy decoding",
        "decoded right": f"{report.acc_token:.1%} of the tokens, position by position",
        "certified": f"{report.certified:,} of {records}",
    }


def _probabilities(report: RecallReport) -> dict[str, str]:
    return {
        "ordered": f"{report.ordered:,} of {counted(report.tokens, 'token')} have p > 1/2",
        "mean loss": f"{report.mean_loss:.4f} nats a token",
        "smallest margin": f"{report.min_margin:+.4f} nats (ln 2 less the largest loss of a token)",
    }


def _failure(item: RecordRecall, stubborn: int) -> str:
    doubt = "no token stubborn"
    if item.earliest_stubborn is not None:
        doubt = f"{stubborn:,} of {counted(item.length, 'token')} stubborn, the first at {item.earliest_stubborn}"
    return doubt if item.exact is None or item.why is None else f"{doubt}. {item.why}"


def _causes(found: Patterns) -> dict[str, str]:
    """What the failures have in common, as far as it was asked."""
    rows = {}
    if found.one_token_short:
        rows["one token short"] = f"{found.one_token_short:,} of {counted(found.failures or 0, 'failure')}"
    if found.unreachable:
        share = (
            "" if found.failures is None else f"; the first wrong token of {counted(found.unavoidable or 0, 'record')}"
        )
        rows["out of reach"] = f"{found.unreachable:,} of {counted(found.stubborn, 'stubborn token')}{share}"
    if (related := found.stubborn_vs_failure) is not None:
        rows["first failure"] = (
            f"follows the earliest stubborn token with Spearman {related.value:.2f} "
            f"(95%: {related.low:.2f} to {related.high:.2f})"
        )
    return rows
