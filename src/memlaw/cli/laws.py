"""memlaw laws: list the laws in a library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlaw.cli.options import AsJson
from memlaw.cli.output import aligned_rows, counted, emit, note

if TYPE_CHECKING:
    from memlaw.planning.library import KnownLaw


def laws(
    *,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Library of laws.  [default: laws]", envvar="MEMLAW_LAWS"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the laws saved by `memlaw fit --save`: their model, placement and data, their fit, their date."""
    from memlaw.planning.library import listing

    rows = listing(laws_in(folder))
    emit(as_json, {"laws": rows}, laws_lines(rows))


def laws_in(folder: Path | None) -> dict[str, KnownLaw]:
    """The laws of a library by name; a warning for each damaged file."""
    from memlaw.planning.library import FOLDER, library

    saved = library(folder or FOLDER)
    for sentence in saved.damaged:
        note(f"Warning: {sentence}")
    return saved.laws


def laws_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The laws of a library, a paragraph each."""
    for row in rows:
        quality = "" if row["r2"] is None else f", R^2 {row['r2']:.4f}"
        yield f"{row['name']}: {row['form']} form on {counted(row['n'], 'cell')}{quality}"
        origin = {
            key: row[key]
            for key in ("model", "placement", "data", "method", "optimizer", "date")
            if row[key] is not None
        }
        spans = {name: "{:,g} to {:,g}".format(*row[name]) for name in ("ranks", "lengths")}
        yield from aligned_rows({**origin, **spans} | ({} if row["status"] == "ok" else {"status": row["status"]}))
