"""memlaw report: write one HTML page of a directory of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlaw.cli.options import AsJson, ShowText
from memlaw.cli.output import emit


def report(
    *,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output directory of `memlaw probe` or `memlaw demo`.")
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    show_text: ShowText = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page of all results in DIR."""
    from memlaw.report import write
    from memlaw.report.collect import collect

    content = collect(directory)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(content, out, show_text=show_text)
    emit(as_json, {"report": str(out)}, [str(out)])
