"""memlaw fit: fit the law to measured cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memlaw.cli.options import AsJson
from memlaw.cli.output import counted, emit, paragraph
from memlaw.core.config import Method

if TYPE_CHECKING:
    from memlaw.core.cells import CellResult
    from memlaw.core.points import Estimate
    from memlaw.law import Comparison, Form, Holdout, LawFit


Axis = Literal["rank", "parameters"]
Residuals = Literal["absolute", "relative", "replicates"]
Intervals = Literal["standard", "profile", "bootstrap"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How the law is fitted and checked."""

    form: Annotated[
        Literal["paper", "power", "log", "bounded", "memory"] | None,
        typer.Option(help="Form of the law.  [default: the form that best predicts held-out cells]"),
    ] = None
    axis: Annotated[
        Axis, typer.Option(help="Measure of size; over parameters, several placements can share one law.")
    ] = "rank"
    residuals: Annotated[
        Residuals,
        typer.Option(help="Residuals to minimise: in nats, relative, or in nats weighted by replicates."),
    ] = "absolute"
    intervals: Annotated[Intervals, typer.Option(help="How to compute the 95% intervals.")] = "standard"
    holdout: Annotated[
        str | None,
        typer.Option(metavar="CELLS", help="Also predict held-out cells: length=MAX, rank>=12, corner=MAX."),
    ] = None


def fit(
    *,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR|POINTS.csv", help="A probe, or a table with columns rank,length,delta_loss[,final_loss]."
        ),
    ],
    options: FitOptions,
    method: Annotated[Method | None, typer.Option(help="Only use cells trained with this method.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", "--out", help="Save the law to this file for `memlaw plan`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the Parametric Memory Law dL = C r^alpha l^-beta + b, with error bars and a status."""
    from memlaw.core.files import write_text
    from memlaw.law import compare, fit_law
    from memlaw.law import holdout as predict_held_out
    from memlaw.sweep.laws import law_points, with_origin

    form, axis, residuals = options.form, options.axis, options.residuals
    points = law_points(source, method, axis)
    beside: list[str] = []
    if form is None:
        compared = compare(points, axis=axis, residuals=residuals, source=str(source))
        # A saved law is for planning, which needs a ceiling; a printed one should predict best.
        chosen = compared.best if save is None else compared.best_to_plan
        form, beside = chosen.form, ["", *comparison_lines(compared, chosen.form)]
    law = fit_law(points, form, axis=axis, residuals=residuals, intervals=options.intervals, source=str(source))
    held_out = None
    if options.holdout is not None:
        held_out = predict_held_out(points, law.form, options.holdout, axis=axis, residuals=residuals)
    if save is not None:
        write_text(save, with_origin(law, source, method).to_json())
    emit(as_json, law.summary(held_out), [*fit_lines(law, held_out), *beside])


def fit_lines(law: LawFit, held_out: Holdout | None = None) -> Iterator[str]:
    """The law with its error bars, its quality and its warnings."""
    yield f"The {law.form} form, dL = {law.curve.formula}, on {counted(law.n, 'cell')}:"
    if law.parameters:
        yield f"  {'':<8}{'value':>10}{'+-':>12}    95% interval"
    for name, estimate in law.parameters.items():
        yield f"  {name:<8}{_columns(estimate)}"
    if law.r2 is not None and law.mape is not None:
        yield f"  R^2 {law.r2:.4f}, MAPE {law.mape:.2f}%"
    if held_out is not None:
        yield (
            f"  held out {held_out.held_out}: {counted(held_out.cells, 'cell')}, MAPE {held_out.mape:.2f}%, "
            f"{held_out.coverage90:.0%} inside the 90% interval"
        )
    if law.status != "ok":
        yield from paragraph(law.status, indent=2)
    for warning in law.warnings:
        yield from paragraph(f"Note: {warning}", indent=2)


def comparison_lines(comparison: Comparison, shown: Form | None = None) -> Iterator[str]:
    """How the other forms compare with the one shown (default: the best), and why the best one is best."""
    shown = shown or comparison.best.form
    for other in comparison.fits:
        if other.form != shown and other.r2 is not None and other.mape is not None:
            quality = f"R^2 {other.r2:.4f}, MAPE {other.mape:.2f}% on {counted(other.n, 'cell')}"
            yield f"For comparison, the {other.form} form: {quality}."
    yield from paragraph(comparison.why)
    if shown != comparison.best.form:
        yield from paragraph(
            f"Saved the {shown} form: its loss reduction has a ceiling. Plans lie close to that ceiling, where a form "
            "without one predicts reductions that are impossible."
        )


def _columns(estimate: Estimate) -> str:
    error = "unknown" if estimate.stderr is None else f"{estimate.stderr:.3g}"
    low, high = ("any" if bound is None else f"{bound:.4g}" for bound in (estimate.low, estimate.high))
    return f"{estimate.value:>10.4g}{error:>12}    {'unknown' if low == high == 'any' else f'{low} to {high}'}"


def bits_lines(results: Iterable[CellResult]) -> Iterator[str]:
    """The most bits per parameter in a probe; nothing if bits were not measured."""
    from memlaw.law.bits import ANCHORS, memory_bits

    known = [(bits, result) for result in results if (bits := memory_bits(result)).bits_per_parameter is not None]
    if known:
        bits, result = max(known, key=lambda pair: pair[0].bits_per_parameter or 0.0)
        published = ", ".join(f"{anchor.range} ({anchor.name})" for anchor in ANCHORS)
        yield from paragraph(
            f"At most {bits.bits_per_parameter:.3g} bits are stored per parameter of the adapter (rank "
            f"{result.cell.rank}, length {result.cell.length:,}: {bits.stored_bits:,.0f} bits); published: {published}."
        )
