"""What a directory of results holds: cells, laws, a plan, a recall - for the commands that read them back."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memlaw import durable
from memlaw.diagnosis import Texts, report_from_dict
from memlaw.errors import ConfigError, FitError, JournalError
from memlaw.journal import PROBE, Journal
from memlaw.law import Axis, LawFit, Origin, calibrate, compare, fit_law, points_from_results, read_points
from memlaw.laws import Choose, KnownLaw, Use, nearest, suited
from memlaw.plan import CellRecall
from memlaw.records import Cell, CellResult, LawPoint
from memlaw.report import FittedLaw, ReportContent

PLAN, RECALL, LAW, COMMANDS = "plan.json", "recall.json", "law.json", "commands.json"


def law_chooser(source: Path | None, cells: Path | None = None, *, shelf: Iterable[KnownLaw] = ()) -> Choose:
    """Which law a plan rests on: the one named by `source`, or the nearest of those on the `shelf`.

    `source` is a file of `memlaw fit --save` or a probe. `cells` is a probe of a few cells of the kind of facts in
    question: the law is calibrated to them, and they say which loss recall needs. Everything is read here, before the
    model is. Raises FitError, JournalError, ConfigError; so does the chooser, for cells of another model or placement.
    """
    known = None if source is None else known_law(source)
    few = None if cells is None else _of_one_method(probe_results(cells), cells)
    if few is not None and not points_from_results(few):
        raise FitError(f"{cells} has no finished cell to calibrate a law with. Run its probe again, or leave it out.")

    def choose(use: Use) -> KnownLaw:
        chosen = nearest(shelf, use) if known is None else suited(known, use)
        if few is None or cells is None:
            return chosen
        _check_cells(_origin(few, cells), cells, use)
        return replace(chosen, law=calibrate(chosen.law, points_from_results(few)), cells=recalled(few))

    return choose


def _check_cells(origin: Origin, cells: Path, use: Use) -> None:
    """What another model or placement holds says nothing of this one's."""
    if origin.placement != use.placement:
        raise FitError(
            f"The cells in {cells} were trained at {origin.placement}, and the plan is for {use.placement}, where a "
            "rank holds another amount. Plan with their --placement, or probe a few cells at this one."
        )
    pairs = (
        (origin.outline, use.outline),
        (origin.model_fingerprint, use.model_fingerprint),
        (origin.tokenizer_fingerprint, use.tokenizer_fingerprint),
    )
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise FitError(
            f"The cells in {cells} were trained on another model or with another tokenizer (theirs was "
            f"{origin.model}), so they say nothing of {use.model}. Probe a few cells on it, or leave them out."
        )


def known_law(source: Path) -> KnownLaw:
    """The law in a file, or the better form fitted to a probe. Raises FitError, JournalError, ConfigError."""
    if not source.is_dir():
        return KnownLaw.from_json(_text(source), name=str(source))
    results = _of_one_method(probe_results(source), source)
    return kept_with(compare(points_from_results(results), source=str(source)).best_to_plan, results, source)


def with_origin(law: LawFit, source: Path, method: str | None = None) -> KnownLaw:
    """A law fitted to `law_points` of the same source and method, with what else is known of that source."""
    if not source.is_dir():
        return KnownLaw(law)
    return kept_with(law, _of_one_method(probe_results(source), source, method), source)


def kept_with(law: LawFit, results: Sequence[CellResult], source: Path) -> KnownLaw:
    """A law fitted to the cells of a probe, with where they come from and what they say of recall."""
    return KnownLaw(replace(law, origin=_origin(results, source)), recalled(results))


def _origin(results: Sequence[CellResult], source: Path) -> Origin:
    finished = [result for result in results if result.status == "finished"]
    cell, about = finished[0].cell, Journal(source).spec().about
    per_rank = {result.parameters / result.cell.rank for result in finished}
    placements = {result.cell.placement for result in finished}
    return Origin(
        model=about.get("model"),
        model_fingerprint=cell.model,
        outline=about.get("outline"),
        tokenizer_fingerprint=cell.tokenizer,
        placement=placements.pop() if len(placements) == 1 else None,
        parameters_per_rank=per_rank.pop() if len(per_rank) == 1 else None,
        data=about.get("data"),
        data_fingerprint=cell.data,
        method=cell.train.method,
        steps=cell.train.steps,
        dtype=cell.dtype,
        date=datetime.date.today().isoformat(),
        version=importlib.metadata.version("memlaw"),
    )


def recalled(results: Sequence[CellResult]) -> tuple[CellRecall, ...]:
    """What finished cells say of the loss at which records come back verbatim."""
    return tuple(
        CellRecall(result.loss_final, round(result.acc_em * result.records), result.records, result.cell.length)
        for result in results
        if result.loss_final is not None and result.acc_em is not None
    )


def law_points(source: Path, method: str | None = None, axis: Axis = "rank") -> tuple[LawPoint, ...]:
    """Points of a CSV file, or of the finished cells of a probe. Raises FitError, ConfigError, JournalError."""
    if source.is_dir():
        return points_from_results(_of_one_method(probe_results(source), source, method), axis=axis)
    if method is not None:
        raise ConfigError(
            f"{source} is no directory of a probe, and the cells of a table have no --method. Leave it out."
        )
    return read_points(source)


def _of_one_method(results: Sequence[CellResult], source: Path, method: str | None = None) -> tuple[CellResult, ...]:
    """The cells trained by `method`, or all of them where they were trained by one."""
    methods = sorted({result.cell.train.method for result in results})
    if method is not None and method not in methods:
        raise ConfigError(f"{source} holds no cell of the method {method}; it has {', '.join(methods) or 'none'}.")
    if method is None and len(methods) > 1:
        raise ConfigError(
            f"{source} holds cells of the methods {' and '.join(methods)}, and a law is of one method. Choose with "
            f"--method: `memlaw fit {source} --method {methods[0]} --save law.json`, whose file `memlaw plan` takes."
        )
    return tuple(result for result in results if method in (None, result.cell.train.method))


def probe_results(directory: Path) -> tuple[CellResult, ...]:
    """Every verified cell of one probe. Raises JournalError if the directory is none."""
    if not (directory / PROBE).exists():
        raise JournalError(f"{directory} is not a probe: it has no {PROBE}. Give what `memlaw probe --out` wrote.")
    return Journal(directory).results()


def keep(path: Path, text: str, *, private: bool = False) -> None:
    """Make `text` the content of the file `path`, whole or not at all; if `private`, for its owner's eyes only.

    Raises JournalError.
    """
    try:
        durable.make_folders(path.parent)
        durable.write(path, text.encode(), mode=0o600 if private else 0o666)
    except OSError as error:
        raise JournalError(
            f"{path} cannot be written: {error.strerror or error}. What was there is as it was; make room or choose "
            "another --out, and run the command again."
        ) from error


def content(directory: Path) -> ReportContent:
    """Everything a report can show of a probe, or of a directory of probes with a plan and a recall beside them."""
    probes = _probes(directory)
    if not probes and not (directory / RECALL).exists():
        raise JournalError(
            f"{directory} holds no probe ({PROBE}) and no {RECALL}, so there is nothing to report. Give a directory "
            "that `memlaw probe` or `memlaw demo` wrote."
        )
    cells: list[CellResult] = []
    sources: dict[str, str] = {}
    stored = _json(directory / RECALL)
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
        plan=_json(directory / PLAN),
        recall=None if stored is None else report_from_dict(stored),
        advice=() if stored is None else _sentences(stored),
        texts=None if stored is None else _texts(stored),
        sources=sources,
        made=made,
        commands=(_json(directory / COMMANDS) or {}).get("commands", ()),
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


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise JournalError(f"{path} is not JSON ({error}); it was damaged or cut short. Write it again.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise JournalError(f"{path} is not UTF-8 text (byte {error.start}), so memlaw did not write it.") from error
