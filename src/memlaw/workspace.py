"""What a directory of results holds: cells, laws, a plan, a recall - for the commands that read them back."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memlaw import durable
from memlaw.diagnosis import Texts, report_from_dict
from memlaw.errors import ConfigError, FitError, JournalError
from memlaw.journal import PROBE, Journal
from memlaw.law import LawFit, calibrate, compare, fit_law, points_from_results, read_points
from memlaw.plan import default_law
from memlaw.records import Cell, CellResult, LawPoint
from memlaw.report import FittedLaw, ReportContent

PLAN, RECALL, LAW, COMMANDS = "plan.json", "recall.json", "law.json", "commands.json"


@dataclass(frozen=True)
class KnownLaw:
    """A law, and what its cells say about the loss that recall needs: (final loss, share recalled) of each."""

    law: LawFit
    observed: tuple[tuple[float, float], ...] = ()


def known_law(source: Path | None, cells: Path | None = None) -> KnownLaw:
    """The law to plan with: a file of `memlaw fit --out`, the better form fitted to a probe, or the borrowed one.

    `cells` is a probe of a few cells of the kind of facts in question: the law is calibrated to them, and they say
    which loss recall needs. Raises FitError, JournalError.
    """
    if source is None:
        known = KnownLaw(default_law())
    elif source.is_dir():
        results = _of_one_method(probe_results(source), source)
        known = KnownLaw(compare(points_from_results(results), source=str(source)).best, observed(results))
    else:
        known = KnownLaw(LawFit.from_json(_text(source), name=str(source)))
    if cells is None:
        return known
    results = _of_one_method(probe_results(cells), cells)
    points = points_from_results(results)
    if not points:
        raise FitError(f"{cells} has no finished cell to calibrate a law with. Run its probe again, or leave it out.")
    return KnownLaw(calibrate(known.law, points), observed(results))


def observed(results: Sequence[CellResult]) -> tuple[tuple[float, float], ...]:
    """(final loss, share recalled) of finished cells: records recalled, or tokens where there is one long target."""
    shares = []
    for result in results:
        share = result.acc_em if result.records > 1 else result.acc_token
        if result.loss_final is not None and share is not None:
            shares.append((result.loss_final, share))
    return tuple(shares)


def law_points(source: Path, method: str | None = None) -> tuple[LawPoint, ...]:
    """Points of a CSV file, or of the finished cells of a probe. Raises FitError, ConfigError, JournalError."""
    if source.is_dir():
        return points_from_results(_of_one_method(probe_results(source), source, method))
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
            f"--method: `memlaw fit {source} --method {methods[0]} --out law.json`, whose file `memlaw plan` takes too."
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
    """Both forms for the largest family of cells that differ in rank, length and seed alone: a page has one law."""
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
        for law in _both_forms(points, sources[family.data])
    )


def _both_forms(points: Sequence[LawPoint], source: str) -> tuple[LawFit, ...]:
    """The better form first; where neither can be fitted, each says why."""
    try:
        return compare(points, source=source).fits
    except FitError:
        return fit_law(points, "paper", source=source), fit_law(points, "bounded", source=source)


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
