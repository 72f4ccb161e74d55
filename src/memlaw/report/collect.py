"""Collect what a report shows from a directory of results."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memlaw.adapter.info import INFO, load_info
from memlaw.core.cells import CellResult
from memlaw.core.errors import FitError, JournalError
from memlaw.core.files import read_json
from memlaw.core.points import LawPoint
from memlaw.core.recall import RecallReport
from memlaw.core.version import installed_version
from memlaw.diagnosis.documents import Texts, report_from_dict, side_effects_from_dict
from memlaw.law import LawFit, compare, fit_law, points_from_results
from memlaw.report.content import AdapterCost, FittedLaw, ReportContent
from memlaw.report.families import named_families
from memlaw.report.paths import without_paths
from memlaw.sweep.journal import PROBE, Journal

PLAN, RECALL, LAW, COMMANDS = "plan.json", "recall.json", "law.json", "commands.json"


def collect(directory: Path) -> ReportContent:
    """Everything a report can show of a probe, or of a directory of probes with adapters, a plan and a recall in it.

    Files and models are named without the folders of this machine.

    Raises JournalError if the directory has nothing to show or a file in it is damaged, DataError for an edited recall,
    AdapterError for the damaged record of an adapter.
    """
    directories, costs = _probes(directory), _costs(directory)
    if not directories and not costs and not (directory / RECALL).exists():
        raise JournalError(
            f"{directory} contains neither a probe ({PROBE}) nor {RECALL}, nor an adapter with side effects, so the "
            "report would be empty. Give a directory that `memlaw probe`, `memlaw demo` or `memlaw train` wrote."
        )
    probes = [_without_paths(_read(probe), directory) for probe in directories]
    cells = [result for probe in probes for result in probe.results]
    sources = {result.cell.data: probe.data for probe in probes for result in probe.results}
    stored = read_json(directory / RECALL)
    recall = None if stored is None else report_from_dict(stored)
    made = _made(probes, sources)
    return ReportContent(
        title=f"Parametric memory of {made.get('model') or 'a model'}",
        cells=cells,
        grid=sum(probe.grid for probe in probes),
        fits=_fits(cells, sources),
        plan=without_paths(read_json(directory / PLAN), directory),
        recall=recall,
        costs=(*costs, *_cost_of_recall(recall, stored, costs)),
        advice=() if stored is None else without_paths(_sentences(stored), directory),
        texts=None if stored is None else _texts(stored),
        sources=sources,
        made=made,
        commands=without_paths((read_json(directory / COMMANDS) or {}).get("commands", ()), directory),
    )


@dataclass(frozen=True)
class _Probe:
    """What a page shows of one probe."""

    results: Sequence[CellResult]
    grid: int
    """Number of its cells, trained or not."""
    model: str
    data: str


def _without_paths(probe: _Probe, directory: Path) -> _Probe:
    results = [replace(result, message=without_paths(result.message, directory)) for result in probe.results]
    model, data = (without_paths(name, directory) for name in (probe.model, probe.data))
    return replace(probe, results=results, model=model, data=data)


def _read(directory: Path) -> _Probe:
    journal = Journal(directory)
    results, spec = journal.results_by_key(), journal.spec()
    planned = {key for pack in spec.packs for key in pack}
    return _Probe(
        results=[result for _, result in sorted(results.items())],
        grid=len(planned | results.keys()),
        model=str(spec.about.get("model", "")),
        data=str(spec.about.get("data", directory.name)),
    )


def _made(probes: Iterable[_Probe], sources: Mapping[str, str]) -> dict[str, str]:
    """Label -> value: how the results came about."""
    made = {"memlaw": installed_version(), "Python": platform.python_version()}
    for probe in probes:
        if probe.results:
            made |= {"model": probe.model, "machine precision": probe.results[0].cell.dtype}
    return made | {f"fingerprint of {name}": fingerprint[:16] for fingerprint, name in sources.items()}


def _costs(directory: Path) -> list[AdapterCost]:
    """The adapters in a directory, or the one that it is, whose side effects were recorded."""
    costs = []
    for path in (*directory.glob(INFO), *sorted(directory.glob(f"*/{INFO}"))):
        info = load_info(path.parent)
        if info is not None and info.side_effects is not None:
            place = f"rank {info.rank} at {info.placement}"
            name = path.parent.resolve().name
            costs.append(
                AdapterCost(
                    name=name, place=place, recalled=info.recalled, records=info.records, effects=info.side_effects
                )
            )
    return costs


def _cost_of_recall(recall: RecallReport | None, stored: Any, known: Sequence[AdapterCost]) -> Iterator[AdapterCost]:
    """The side effects in the JSON of a recall, unless they are those of an adapter beside it."""
    effects = None if recall is None else side_effects_from_dict(stored)
    if recall is None or effects is None or any(cost.effects == effects for cost in known):
        return
    ordered = sum(item.margin > 0 for item in recall.items)
    yield AdapterCost(name="memlaw recall", place="", recalled=ordered, records=recall.records, effects=effects)


def _sentences(stored: Any) -> tuple[str, ...]:
    """The advice in the JSON of a recall."""
    return tuple(map(str, stored.get("advice") or ()))


def _texts(stored: Any) -> Texts | None:
    """The target texts in the JSON of a recall, if it was written with --show-text."""
    texts = stored.get("texts")
    return None if texts is None else {name: tuple(map(str, pieces)) for name, pieces in texts.items()}


def _fits(cells: Sequence[CellResult], sources: Mapping[str, str]) -> tuple[FittedLaw, ...]:
    """The law of the largest family of cells trained for their whole budget: a page shows one law."""
    families = [family for family in named_families(cells, sources) if family.until_budget]
    if not families:
        return ()
    largest = max(families, key=lambda family: len(family.results))
    points = points_from_results(largest.results)
    source = sources[largest.results[0].cell.data]
    return tuple(
        FittedLaw(summary=law.summary(), points=points, predictor=law, label=largest.label)
        for law in (_shown_forms(points, source) if points else ())
    )


def _shown_forms(points: Sequence[LawPoint], source: str) -> tuple[LawFit, ...]:
    """The best form and the paper's; if neither can be fitted, the paper's, whose status says why."""
    try:
        best, *others = compare(points, source=source).fits
    except FitError:
        return (fit_law(points, "paper", source=source),)
    return (best, *(fit for fit in others if fit.form == "paper"))


def _probes(directory: Path) -> list[Path]:
    """The directories of probes: `directory` itself and those directly in it."""
    return [path.parent for path in (*directory.glob(PROBE), *sorted(directory.glob(f"*/{PROBE}")))]
