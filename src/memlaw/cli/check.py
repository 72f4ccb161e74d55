"""memlaw check: what would keep the facts from being recalled."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.options import AsJson, Inputs, Placement
from memlaw.cli.output import SHOWN, emit, paragraph, printable, quiet_transformers

if TYPE_CHECKING:
    from memlaw.diagnosis.findings import CheckReport, Finding, Severity


def check(
    *,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="An adapter that is to recall them.")] = None,
    law: Annotated[
        Path | None,
        typer.Option(help="To judge the rank by: of `memlaw fit --save`, or a probe.  [default: that of Qwen3-8B]"),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="LoRA rank to judge.  [default: the adapter's, where memlaw wrote it]")
    ] = None,
    placement: Placement = None,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """What would keep DATA from being recalled, before any training: findings, each with its way out."""
    from memlaw.api import check_on
    from memlaw.data.load import load_memory_set
    from memlaw.model.base import load
    from memlaw.model.reach import reachable_ids
    from memlaw.sweep.laws import known_law

    known = None if law is None else known_law(law)
    # What the other commands note on stderr is among the findings here.
    quiet_transformers()
    base = load(inputs.model, dtype=inputs.dtype, device=inputs.device)
    memory_set = load_memory_set(inputs.data, base.tokenizer, partial(reachable_ids, base), inputs.reading)
    found = check_on(base, memory_set, adapter=adapter, law=known, rank=rank, placement=placement)
    emit(as_json, found.to_dict(), check_lines(found))


def check_lines(report: CheckReport) -> Iterator[str]:
    """The findings in a person's words, those of one kind and wording together."""
    counts = ", ".join(f"{number:,} {severity}" for severity, number in report.counts.items())
    yield f"Facts: {report.records:,}, target tokens: {report.tokens:,}; {counts}."
    alike: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in report.findings:
        alike.setdefault((finding.severity, finding.code, finding.fix), []).append(finding)
    for (severity, code, fix), findings in alike.items():
        named = [printable(finding.record) for finding in findings if finding.record is not None]
        shown = ", ".join(named[:SHOWN]) + (f", ... ({len(named):,} facts)" if len(named) > SHOWN else "")
        yield ""
        yield f"{severity}: {code}" + (f": {shown}" if named else "")
        yield from paragraph(findings[0].message, indent=2)
        yield from paragraph(f"Fix: {fix}", indent=2)
