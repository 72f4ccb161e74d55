"""memlaw report: a directory of results as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlaw.cli.options import AsJson, ShowText
from memlaw.cli.output import emit


def report(
    *,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `memlaw probe` or `memlaw demo` wrote.")],
    out: Annotated[Path, typer.Option(help="The HTML file.")],
    show_text: ShowText = False,
    as_json: AsJson = False,
) -> None:
    """One self-contained HTML page of everything measured in DIR."""
    from memlaw.report import write
    from memlaw.report.collect import collect

    shown = collect(directory)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(shown, out, show_text=show_text)
    emit(as_json, {"report": str(out)}, [str(out)])
