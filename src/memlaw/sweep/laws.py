"""The laws in a probe's directory, and the choice of one to plan with."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from memlaw.core.cells import CellResult
from memlaw.core.errors import ConfigError, FitError, JournalError
from memlaw.core.files import read_text
from memlaw.core.points import LawPoint
from memlaw.core.version import installed_version
from memlaw.law import Axis, LawFit, Origin, calibrate, compare, points_from_results, read_points
from memlaw.planning import CellRecall
from memlaw.planning.library import KnownLaw, LawChooser, PlanContext, adapt_law, nearest
from memlaw.sweep.journal import PROBE, Journal


def law_chooser(
    source: Path | KnownLaw | None, cells: Path | None = None, *, shelf: Iterable[KnownLaw] = ()
) -> LawChooser:
    """A chooser that returns the law of `source`, or the nearest law on the `shelf`.

    `source` is a law, a file of `memlaw fit --save` or a probe. `cells` is a probe of a few cells on facts like those
    to be planned for: the law is calibrated to them, and they tell which loss recall needs. All files are read here,
    before a model is loaded. Raises FitError, JournalError, ConfigError, as does the chooser for cells that do not
    apply.
    """
    known = known_law(source) if isinstance(source, Path) else source
    few = None if cells is None else _of_one_method(probe_results(cells), cells)
    if few is not None and not points_from_results(few):
        raise FitError(f"{cells} has no finished cell to calibrate a law with. Rerun its probe, or leave out --cells.")

    def choose(use: PlanContext) -> KnownLaw:
        chosen = nearest(shelf, use) if known is None else adapt_law(known, use)
        if few is None or cells is None:
            return chosen
        origin = _origin(few, cells)
        _check_cells(origin, cells, use)
        law = calibrate(chosen.law, points_from_results(few))
        return replace(chosen, law=law, cells=cell_recalls(few), near=(*chosen.near, *_other_training(origin, use)))

    return choose


def _other_training(origin: Origin, use: PlanContext) -> tuple[str, ...]:
    if use.optimizer in (None, origin.optimizer):
        return ()
    return (f"The cells that calibrate it were trained with {origin.optimizer}, not with {use.optimizer}.",)


def _check_cells(origin: Origin, cells: Path, use: PlanContext) -> None:
    """Raises FitError for cells of another model, tokenizer or placement, whose capacity may be any."""
    if origin.placement != use.placement:
        raise FitError(
            f"The cells in {cells} were trained at {origin.placement}, but the plan is for {use.placement}, where the "
            "same rank holds a different amount. Plan with their --placement, or probe a few cells at this one."
        )
    pairs = (
        (origin.outline, use.outline),
        (origin.model_fingerprint, use.model_fingerprint),
        (origin.tokenizer_fingerprint, use.tokenizer_fingerprint),
    )
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        raise FitError(
            f"The cells in {cells} were trained on another model or tokenizer (there {origin.model}, here "
            f"{use.model}), so they do not apply. Probe a few cells on it, or leave out --cells."
        )


def known_law(source: Path) -> KnownLaw:
    """The law in a file, or the best one for plans fitted to a probe. Raises FitError, JournalError, ConfigError."""
    if not source.is_dir():
        return KnownLaw.from_json(read_text(source), name=str(source))
    results = _of_one_method(probe_results(source), source)
    return with_cells(compare(points_from_results(results), source=str(source)).best_to_plan, results, source)


def with_origin(law: LawFit, source: Path, method: str | None = None) -> KnownLaw:
    """A law fitted to `law_points` of the same source and method; if that is a probe, with its origin and recall."""
    if not source.is_dir():
        return KnownLaw(law)
    return with_cells(law, _of_one_method(probe_results(source), source, method), source)


def with_cells(law: LawFit, results: Sequence[CellResult], source: Path) -> KnownLaw:
    """A law fitted to the cells of a probe, with their origin and recall."""
    return KnownLaw(replace(law, origin=_origin(results, source)), cell_recalls(results))


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
        optimizer=cell.train.optimizer,
        steps=cell.train.steps,
        dtype=cell.dtype,
        date=datetime.date.today().isoformat(),
        version=installed_version(),
    )


def cell_recalls(results: Sequence[CellResult]) -> tuple[CellRecall, ...]:
    """Final loss and number of records recalled, for every finished cell."""
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
            f"{source} is not a probe directory, and the points of a table have no method. Leave out --method."
        )
    return read_points(source)


def _of_one_method(results: Sequence[CellResult], source: Path, method: str | None = None) -> tuple[CellResult, ...]:
    """The cells trained by `method`; without it, all cells, which must share one method. Raises ConfigError."""
    methods = sorted({result.cell.train.method for result in results})
    if method is not None and method not in methods:
        raise ConfigError(f"{source} has no cell of the method {method}. Its methods: {', '.join(methods) or 'none'}.")
    if method is None and len(methods) > 1:
        raise ConfigError(
            f"{source} has cells of the methods {' and '.join(methods)}, but a law holds for one method. Choose it "
            f"with --method: `memlaw fit {source} --method {methods[0]} --save law.json`, then pass the file to "
            "`memlaw plan`."
        )
    return tuple(result for result in results if method in (None, result.cell.train.method))


def probe_results(directory: Path) -> tuple[CellResult, ...]:
    """Every verified cell of one probe. Raises JournalError if `directory` is not a probe directory."""
    if not (directory / PROBE).exists():
        raise JournalError(
            f"{directory} is not a probe directory: it has no {PROBE}. Give what `memlaw probe --out` wrote."
        )
    return Journal(directory).results()
