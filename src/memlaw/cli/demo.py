"""memlaw demo: every step once, on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memlaw.cli.options import AsJson
from memlaw.cli.output import emit, note, quiet_transformers


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Output directory.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Run every step once on the bundled model: probe, fit, plan, train, recall, report (a few minutes)."""
    from memlaw.cli.demo_chain import run_demo

    quiet_transformers()
    document, lines = run_demo(out, say=note)
    emit(as_json, document, lines)
