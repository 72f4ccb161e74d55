"""memlaw fit: fit the law."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def fit(
    *,
    source: Annotated[
        Path, typer.Argument(metavar="DIR|POINTS.csv", help="A probe, or columns rank,length,delta_loss[,final_loss].")
    ],
    form: Annotated[
        Literal["paper", "power", "log", "bounded", "memory"] | None,
        typer.Option(help="Of the law.  [default: the one that predicts cells left out best]"),
    ] = None,
    axis: Annotated[
        Literal["rank", "parameters"],
        typer.Option(help="What a law calls size: cells of several placements share one over parameters."),
    ] = "rank",
    residuals: Annotated[
        Literal["absolute", "relative", "replicates"],
        typer.Option(help="What is least: squares of nats, of logarithms, or of nats weighed by replicates."),
    ] = "absolute",
    intervals: Annotated[
        Literal["standard", "profile", "bootstrap"], typer.Option(help="Where the 95% intervals come from.")
    ] = "standard",
    method: Annotated[Method | None, typer.Option(help="Cells of this method only.")] = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="CELLS", help="Predict cells left out: length=MAX, rank>=12, corner=MAX.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", "--out", help="Write the law here, for `memlaw plan`; see `memlaw laws`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the Parametric Memory Law dL = C r^alpha l^-beta + b, with error bars and a status."""
    from memlaw.core.files import write_text
    from memlaw.law import compare, fit_law
    from memlaw.law import holdout as hold_out
    from memlaw.sweep.laws import law_points, with_origin

    points = law_points(source, method, axis)
    beside: list[str] = []
    if form is None:
        compared = compare(points, axis=axis, residuals=residuals, source=str(source))
        chosen = compared.best if save is None else compared.best_to_plan
        form, beside = chosen.form, ["", *comparison_lines(compared, chosen.form)]
    law = fit_law(points, form, axis=axis, residuals=residuals, intervals=intervals, source=str(source))
    judged = None if holdout is None else hold_out(points, law.form, holdout, axis=axis, residuals=residuals)
    if save is not None:
        write_text(save, with_origin(law, source, method).to_json())
    emit(as_json, law.summary(judged), [*fit_lines(law, judged), *beside])


def fit_lines(law: LawFit, judged: Holdout | None = None) -> Iterator[str]:
    """The law with its doubts."""
    yield f"The {law.form} form, dL = {law.curve.formula}, on {counted(law.n, 'cell')}:"
    if law.parameters:
        yield f"  {'':<8}{'value':>10}{'+-':>12}    95% interval"
    for name, estimate in law.parameters.items():
        yield f"  {name:<8}{_doubtful(estimate)}"
    if law.r2 is not None and law.mape is not None:
        yield f"  R^2 {law.r2:.4f}, MAPE {law.mape:.2f}%"
    if judged is not None:
        yield (
            f"  held out {judged.held_out}: {counted(judged.cells, 'cell')}, MAPE {judged.mape:.2f}%, "
            f"{judged.coverage90:.0%} inside the 90% interval"
        )
    if law.status != "ok":
        yield from paragraph(law.status, indent=2)
    for warning in law.warnings:
        yield from paragraph(f"Note: {warning}", indent=2)


def comparison_lines(judged: Comparison, shown: Form | None = None) -> Iterator[str]:
    """How the other forms did than the one shown, by default the best, and why the best is the best."""
    shown = shown or judged.best.form
    for other in judged.fits:
        if other.form != shown and other.r2 is not None and other.mape is not None:
            yield f"The {other.form} form, beside it: R^2 {other.r2:.4f}, MAPE {other.mape:.2f}% on {other.n} cells."
    yield from paragraph(judged.why)
    if shown != judged.best.form:
        yield from paragraph(
            f"Saved is the {shown} form: it knows a ceiling, and plans are made close to it, where forms without one "
            "promise what cannot be."
        )


def _doubtful(estimate: Estimate) -> str:
    error = "unknown" if estimate.stderr is None else f"{estimate.stderr:.3g}"
    low, high = ("any" if bound is None else f"{bound:.4g}" for bound in (estimate.low, estimate.high))
    return f"{estimate.value:>10.4g}{error:>12}    {'unknown' if low == high == 'any' else f'{low} to {high}'}"


def bits_lines(results: Iterable[CellResult]) -> Iterator[str]:
    """The densest memory of a probe; nothing where bits were not measured."""
    from memlaw.law.bits import ANCHORS, memory_bits

    known = [(bits, result) for result in results if (bits := memory_bits(result)).bits_per_parameter is not None]
    if known:
        bits, result = max(known, key=lambda pair: pair[0].bits_per_parameter or 0.0)
        published = ", ".join(f"{anchor.range} ({anchor.name})" for anchor in ANCHORS)
        yield from paragraph(
            f"At most {bits.bits_per_parameter:.3g} bits are stored per parameter of the adapter (rank "
            f"{result.cell.rank}, length {result.cell.length:,}: {bits.stored_bits:,.0f} bits); published: {published}."
        )
