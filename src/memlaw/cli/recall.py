"""memlaw recall: measure what is recalled, and explain what is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.options import Allowed, AsJson, Inputs, Junit, Laws, Neutral, ShowText, Weights, numbers
from memlaw.cli.output import SHOWN, aligned_rows, counted, emit, note, paragraph, printable
from memlaw.core.canonical import canonical_json
from memlaw.core.errors import ConfigError, suggest
from memlaw.core.precision import MARGINS
from memlaw.core.recall import RecallReport
from memlaw.core.side_effects import SideEffects, sentence

if TYPE_CHECKING:
    from memlaw.adapter.mixture import Weighted
    from memlaw.core.facts import MemorySet
    from memlaw.core.recall import RecordRecall
    from memlaw.diagnosis.patterns import Patterns
    from memlaw.diagnosis.side_effects import Alone
    from memlaw.model.base import Base


@dataclass(frozen=True, kw_only=True)
class RecallOptions:
    """What is measured, and with which law advice is given."""

    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Adapter to measure, saved by memlaw or PEFT; several are added up.  [default: the bare model]",
        ),
    ] = None
    weights: Weights = None
    served_as: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="PRECISION",
            help="Judge on the weights as they are served, quantised or cast: q8_0, q5_0, q4_0, bfloat16 or float16.  "
            "[default: as loaded]",
        ),
    ] = None
    decode: Annotated[bool, typer.Option("--decode", help="Decode greedily as well, as certificates require.")] = False
    laws: Laws = None
    side_effects: Annotated[
        bool, typer.Option("--side-effects", help="Measure what the adapter changes elsewhere as well.")
    ] = False
    neutral: Neutral = None
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="For side effects of a merged model: the model it was made from."),
    ] = None
    junit: Junit = None

    @property
    def mixture(self) -> tuple[Weighted, ...]:
        """The adapters with their weights. Raises ConfigError."""
        from memlaw.adapter.mixture import mixture_of

        return mixture_of(self.adapter or [], numbers(self.weights))

    def check(self) -> None:
        """Raise ConfigError for options that would have no effect."""
        if self.junit is not None and not self.decode:
            raise ConfigError("--junit says which facts are certified, and certificates need --decode: add it.")
        if self.served_as is not None and self.served_as not in MARGINS:
            raise ConfigError(
                f"--as {self.served_as!r} is not a precision in which recall can be judged. "
                f"{suggest(self.served_as, MARGINS)}Known: {', '.join(MARGINS)}."
            )
        if not self.side_effects and (self.neutral is not None or self.base is not None):
            option = "--base" if self.neutral is None else "--neutral"
            raise ConfigError(f"{option} is for side effects, which are not measured: add --side-effects.")


def recall(
    *,
    options: RecallOptions,
    out: Annotated[
        Path | None, typer.Option(help="Save per-token results as JSON; `memlaw report DIR` includes DIR/recall.json.")
    ] = None,
    show_text: ShowText = False,
    allowed: Allowed,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Did it stick? Diagnose every token of DATA, and certify the facts that come back verbatim."""
    from memlaw.adapter.faults import Allow
    from memlaw.adapter.info import load_info
    from memlaw.adapter.mixture import MIXTURE, attach_all, is_mixture
    from memlaw.api import other_prompts, trained_on
    from memlaw.core.files import write_text
    from memlaw.data.spelling import changed_facts, changed_warning
    from memlaw.diagnosis.documents import report_to_dict
    from memlaw.diagnosis.measure import measure, token_texts
    from memlaw.diagnosis.side_effects import side_effects
    from memlaw.model.rounding import served_as
    from memlaw.report.junit import junit_xml

    options.check()
    parts = options.mixture
    for part in parts:
        load_info(part.directory)  # a directory that holds no adapter is refused before the model is loaded
    mixed, alone = is_mixture(parts), parts[0].directory if parts else None
    loaded, memory_set, facts = inputs.load()
    base = served_as(loaded, options.served_as or loaded.judged_in)
    if changed := changed_facts(base, facts):
        note(f"Warning: {changed_warning(changed, len(facts))}")
    before = _before(base, memory_set, options, inputs) if options.side_effects else None
    allow = Allow(partial=allowed.allow_partial, other_base=allowed.allow_other_base)
    with attach_all(base, parts, allow) as faults:
        cautions = [fault.message for fault in faults]
        for caution in cautions:
            note(f"Warning: {caution}")
        report = measure(base, facts, decode=options.decode, explain=True)
        effects = None if before is None else side_effects(base, before)
    for caution in (MIXTURE,) if mixed else other_prompts(memory_set, alone, report):
        note(f"Warning: {caution}")
    advice = [] if mixed else _advice(base, memory_set, report, alone, options.laws)
    document = report_to_dict(
        report,
        texts=token_texts(base, facts) if show_text else None,
        advice=advice,
        same_facts=None if mixed else trained_on(memory_set, alone),
        side_effects=effects,
    )
    document["adapter_faults"] = cautions
    document["mixture"] = [{"adapter": str(one.directory), "weight": one.weight} for one in parts] if mixed else None
    if out is not None:
        write_text(out, canonical_json(document), private=show_text)
    if options.junit is not None:
        xml = junit_xml(report, suite="memlaw.recall", texts=document["texts"])
        write_text(options.junit, xml, private=show_text)
    said = [_mixed(parts), *recall_lines(report, advice, effects)] if mixed else recall_lines(report, advice, effects)
    emit(as_json, document, said)


def _mixed(parts: Sequence[Weighted]) -> str:
    return "Mixture: " + " + ".join(f"{part.weight:g} x {printable(str(part.directory))}" for part in parts)


def _before(base: Base, memory_set: MemorySet, options: RecallOptions, inputs: Inputs) -> Alone:
    """What the model is compared with: itself without the adapter, or the base that it was merged into."""
    from memlaw.api import model_without
    from memlaw.model.base import load

    bare = None if options.base is None else load(options.base, dtype=inputs.dtype, device=inputs.device).model
    adapter = options.adapter[0] if options.adapter else None  # any: nothing is attached yet
    return model_without(base, memory_set, adapter=adapter, without=bare, neutral=options.neutral)


def _advice(
    base: Base, memory_set: MemorySet, report: RecallReport, adapter: Path | None, laws: Path | None
) -> list[str]:
    """What would help to recall more. Without an adapter, the model may be one that an adapter was merged into."""
    from memlaw.api import advise_on

    return [str(advice) for advice in advise_on(base, memory_set, report, adapter=adapter, laws=laws)]


def recall_lines(report: RecallReport, advice: Sequence[str] = (), effects: SideEffects | None = None) -> Iterator[str]:
    """The diagnosis as printed, followed by side effects and `advice`, sentences on what to do next."""
    from memlaw.diagnosis.patterns import patterns
    from memlaw.diagnosis.verdicts import stubborn_counts, worst

    records = counted(report.records, "record")
    yield f"{records}, {counted(report.tokens, 'target token')}, measured in {report.dtype}."
    yield ""
    yield from aligned_rows({**_verbatim(report), **_probabilities(report), **_causes(patterns(report))})
    stubborn = dict(zip((item.id for item in report.items), stubborn_counts(report), strict=True))
    failing = {
        item.id for item in report.items if item.exact is False or item.tokens.faithful is False or stubborn[item.id]
    }
    if failing:
        yield ""
        yield "Worst records (positions count from 0):"
        listed = [item for item in worst(report, SHOWN) if item.id in failing]
        yield from aligned_rows({printable(item.id): _failure(item, stubborn[item.id]) for item in listed})
    if len(failing) > SHOWN:
        yield f"  ... and {len(failing) - SHOWN:,} more"
    if effects is not None:
        yield ""
        yield from paragraph(sentence(effects))
    for advised in advice:
        yield ""
        yield from paragraph(advised)


def _verbatim(report: RecallReport) -> dict[str, str]:
    if report.acc_em is None or report.acc_token is None:
        return {"recalled verbatim": "unknown without --decode", "certified": "unknown without --decode"}
    exact, records = sum(item.exact is True for item in report.items), counted(report.records, "record")
    return {
        "recalled verbatim": f"{exact:,} of {records} ({report.acc_em:.1%}) by greedy decoding",
        "correct tokens": f"{report.acc_token:.1%}, position by position",
        "certified": f"{report.certified:,} of {records}",
    }


def _probabilities(report: RecallReport) -> dict[str, str]:
    return {
        "ordered": f"{report.ordered:,} of {counted(report.tokens, 'token')} have p > 1/2",
        "mean loss": f"{report.mean_loss:.4f} nats per token",
        "smallest margin": f"{report.min_margin:+.4f} nats (ln 2 minus the largest token loss)",
    }


def _failure(item: RecordRecall, stubborn: int) -> str:
    summary = "no stubborn tokens"
    if item.earliest_stubborn is not None:
        summary = f"{stubborn:,} of {counted(item.length, 'token')} stubborn, the first at {item.earliest_stubborn}"
    told = item.exact is not None or item.reason == "other_text"  # true without decoding, too
    return f"{summary}. {item.why}" if told and item.why is not None else summary


def _causes(common: Patterns) -> dict[str, str]:
    """What the failures have in common, as far as it was measured."""
    rows = {}
    if common.one_token_short:
        rows["one token short"] = f"{common.one_token_short:,} of {counted(common.failures or 0, 'failure')}"
    if common.unreachable:
        first = counted(common.unavoidable or 0, "record")
        share = "" if common.failures is None else f"; the first wrong token of {first}"
        rows["out of reach"] = f"{common.unreachable:,} of {counted(common.stubborn, 'stubborn token')}{share}"
    if (related := common.stubborn_vs_failure) is not None:
        rows["first failure"] = (
            f"follows the earliest stubborn token with Spearman correlation {related.value:.2f} "
            f"(95%: {related.low:.2f} to {related.high:.2f})"
        )
    return rows
