"""memlaw check: find what would keep the facts from being recalled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.options import Allowed, AsJson, Inputs, Placement
from memlaw.cli.output import SHOWN, emit, paragraph, printable, quiet_transformers

if TYPE_CHECKING:
    from memlaw.diagnosis.findings import CheckReport, Finding, Severity


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is to recall the facts."""

    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="Adapter to check for these facts.")] = None
    law: Annotated[
        Path | None,
        typer.Option(
            help="Law to judge the rank by: a file of `memlaw fit --save`, or a probe.  [default: Qwen3-8B's]"
        ),
    ] = None
    rank: Annotated[
        int | None, typer.Option(help="LoRA rank to judge.  [default: that of an adapter trained by memlaw]")
    ] = None
    placement: Placement = None


def check(
    *,
    judged: Judged,
    allowed: Allowed,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Find what would keep DATA from being recalled, before any training, and how to fix it."""
    from memlaw.api import check_on
    from memlaw.model.base import load
    from memlaw.sweep.laws import known_law

    known = None if judged.law is None else known_law(judged.law)
    # Not inputs.load(): the warnings that it prints to stderr are among the findings.
    quiet_transformers()
    base = load(inputs.model, dtype=inputs.dtype, device=inputs.device)
    memory_set = inputs.read_facts(base)
    checked = check_on(
        base,
        memory_set,
        adapter=judged.adapter,
        law=known,
        rank=judged.rank,
        placement=judged.placement,
        allow_partial=allowed.allow_partial,
        allow_other_base=allowed.allow_other_base,
    )
    emit(as_json, checked.to_dict(), check_lines(checked))


def check_lines(report: CheckReport) -> Iterator[str]:
    """The findings in words, grouped by kind and fix."""
    counts = ", ".join(f"{number:,} {severity}" for severity, number in report.counts.items())
    yield f"Facts: {report.records:,}, target tokens: {report.tokens:,}; {counts}."
    alike: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in report.findings:
        alike.setdefault((finding.severity, finding.code, finding.fix), []).append(finding)
    for (severity, code, fix), findings in alike.items():
        named = [printable(finding.record) for finding in findings if finding.record is not None]
        listed = ", ".join(named[:SHOWN]) + (f", ... ({len(named):,} facts)" if len(named) > SHOWN else "")
        yield ""
        yield f"{severity}: {code}" + (f": {listed}" if named else "")
        yield from paragraph(findings[0].message, indent=2)
        yield from paragraph(f"Fix: {fix}", indent=2)
