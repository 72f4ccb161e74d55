"""Everything a report shows, found in a directory of results."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memlaw.core.cells import Cell, CellResult
from memlaw.core.errors import FitError, JournalError
from memlaw.core.files import read_json
from memlaw.core.points import LawPoint
from memlaw.diagnosis.documents import Texts, report_from_dict
from memlaw.law import LawFit, compare, fit_law, points_from_results
from memlaw.report.content import FittedLaw, ReportContent
from memlaw.sweep.journal import PROBE, Journal

PLAN, RECALL, LAW, COMMANDS = "plan.json", "recall.json", "law.json", "commands.json"


def collect(directory: Path) -> ReportContent:
    """Everything a report can show of a probe, or of a directory of probes with a plan and a recall beside them."""
    probes = _probes(directory)
    if not probes and not (directory / RECALL).exists():
        raise JournalError(
            f"{directory} holds no probe ({PROBE}) and no {RECALL}, so there is nothing to report. Give a directory "
            "that `memlaw probe` or `memlaw demo` wrote."
        )
    cells: list[CellResult] = []
    sources: dict[str, str] = {}
    stored = read_json(directory / RECALL)
    made = {"memlaw": importlib.metadata.version("memlaw"), "Python": platform.python_version()}
    for probe in probes:
        journal = Journal(probe)
        results = journal.results()
        about = journal.spec().about
        cells += results
        sources |= {result.cell.data: str(about.get("data", probe.name)) for result in results}
        made |= {"model": str(about.get("model", "")), "machine precision": results[0].cell.dtype} if results else {}
    made |= {f"fingerprint of {name}": value[:16] for value, name in sources.items()}
    return ReportContent(
        title=f"Parametric memory of {made.get('model') or 'a model'}",
        cells=cells,
        fits=_fits(cells, sources),
        plan=read_json(directory / PLAN),
        recall=None if stored is None else report_from_dict(stored),
        advice=() if stored is None else _sentences(stored),
        texts=None if stored is None else _texts(stored),
        sources=sources,
        made=made,
        commands=(read_json(directory / COMMANDS) or {}).get("commands", ()),
    )


def _sentences(stored: Any) -> tuple[str, ...]:
    """The advice in a recall that has been read as a report."""
    return tuple(map(str, stored.get("advice") or ()))


def _texts(stored: Any) -> Texts | None:
    """The target texts in a recall that was written with --show-text."""
    texts = stored.get("texts")
    return None if texts is None else {name: tuple(map(str, pieces)) for name, pieces in texts.items()}


def _fits(cells: Sequence[CellResult], sources: dict[str, str]) -> tuple[FittedLaw, ...]:
    """The law of the largest family of cells that differ in rank, length and seed alone: a page has one."""
    families: dict[Cell, list[CellResult]] = {}
    for result in cells:
        anyone = replace(result.cell, rank=0, length=0, train=replace(result.cell.train, seed=0))
        families.setdefault(anyone, []).append(result)
    budgeted = {family: members for family, members in families.items() if family.train.until == "budget"}
    if not budgeted:
        return ()
    family, members = max(budgeted.items(), key=lambda item: len(item[1]))
    points = points_from_results(members)
    if not points:
        return ()
    label = sources[family.data] if len(families) > 1 else ""
    return tuple(
        FittedLaw(summary=law.summary(), points=points, predictor=law, label=label)
        for law in _shown_forms(points, sources[family.data])
    )


def _shown_forms(points: Sequence[LawPoint], source: str) -> tuple[LawFit, ...]:
    """The best form, and the paper's beside it; where none can be fitted, that says why."""
    try:
        best, *others = compare(points, source=source).fits
    except FitError:
        return (fit_law(points, "paper", source=source),)
    return (best, *(fit for fit in others if fit.form == "paper"))


def _probes(directory: Path) -> list[Path]:
    return [path.parent for path in _here_and_below(directory, PROBE)]


def _here_and_below(directory: Path, name: str) -> Iterator[Path]:
    yield from directory.glob(name)
    yield from sorted(directory.glob(f"*/{name}"))
