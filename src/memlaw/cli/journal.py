"""memlaw journal: inspect, verify, rebuild and export the journal of a probe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.options import AsJson
from memlaw.cli.output import aligned_rows, counted, emit, paragraph
from memlaw.core.canonical import to_dict

if TYPE_CHECKING:
    from memlaw.sweep.journal import ProbeStatus, VerifyReport

journal = typer.Typer(
    help="Inspect, verify, rebuild and export the files of a probe.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

ProbeDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="Output directory of `memlaw probe`.")]


@journal.command(short_help="Show the progress of a probe")
def status(*, directory: ProbeDirectory, as_json: AsJson = False) -> None:
    """Show how far the probe in DIR is, from its journal alone."""
    from memlaw.sweep.journal import status as read_status

    progress = read_status(directory)
    emit(as_json, to_dict(progress), status_lines(progress))


@journal.command(short_help="Check every file against its SHA-256; change nothing")
def verify(*, directory: ProbeDirectory, as_json: AsJson = False) -> None:
    """Read every file of a probe and check its SHA-256. Exits with 2 if one is damaged; changes nothing."""
    from memlaw.sweep.journal import verify as inspect_files

    checked = inspect_files(directory)
    emit(as_json, to_dict(checked), verify_lines(checked))
    if not checked.intact:
        raise typer.Exit(2)


@journal.command(short_help="Quarantine damaged files and rewrite results.parquet")
def rebuild(*, directory: ProbeDirectory, as_json: AsJson = False) -> None:
    """Move damaged files of a probe to quarantine, and rewrite results.parquet from the intact ones."""
    from memlaw.sweep.journal import rebuild as repair

    repaired = repair(directory)
    table = f"{repaired.out}: results.parquet has {counted(repaired.rows, 'row')}."
    emit(as_json, to_dict(repaired), [*repaired.findings, table])


@journal.command(short_help="Write all results as one table: .csv, .jsonl or .parquet")
def export(
    *,
    directory: ProbeDirectory,
    out: Annotated[Path, typer.Option(help="File to write; its suffix chooses the format: .csv, .jsonl or .parquet.")],
    as_json: AsJson = False,
) -> None:
    """Write all results of a probe as one table."""
    from memlaw.sweep.journal import export as write_table

    rows = write_table(directory, out)
    emit(as_json, {"out": str(out), "rows": rows}, [f"{out}: {counted(rows, 'row')}."])


def status_lines(progress: ProbeStatus) -> Iterator[str]:
    """How far a probe is, and what went wrong."""
    packs = progress.packs
    yield f"{progress.out}: {progress.finished:,} of {counted(progress.cells, 'cell')} finished."
    rows = {
        "diverged": f"{progress.diverged:,}" if progress.diverged else "",
        "failed": f"{progress.failed:,}, will be retried" if progress.failed else "",
        "waiting": f"{progress.waiting:,}" if progress.waiting else "",
        "damaged": f"{progress.damaged:,}; see `memlaw journal verify {progress.out}`" if progress.damaged else "",
        "packs": f"{packs.done:,} done, {packs.partly:,} partly, {packs.waiting:,} waiting",
        "in training": ", ".join(f"pack {at.pack} at step {at.step:,}" for at in progress.checkpoints),
        "last activity": progress.last_activity or "",
    }
    yield from aligned_rows({name: text for name, text in rows.items() if text})
    for reason in progress.reasons:
        yield from paragraph(f"{counted(reason.cells, 'cell')} failed: {reason.message}", indent=2)


def verify_lines(checked: VerifyReport) -> Iterator[str]:
    """The state of a journal's files."""
    state = "all files are intact" if checked.intact else "not all files are intact"
    counts = f"{checked.finished:,} finished, {checked.diverged:,} diverged, {checked.failed:,} failed"
    yield f"{checked.out}: {counts}; {state}."
    for fault in (*checked.damaged, *checked.unreadable):
        yield from paragraph(f"{fault.path}: {fault.why}", indent=2)
    if checked.table != "current":
        yield f"  results.parquet is {checked.table}; run `memlaw journal rebuild {checked.out}` to rewrite it."
    for name, files in (("in quarantine", checked.quarantined), ("left by killed writers", checked.leftovers)):
        if files:
            yield f"  {name}: {counted(len(files), 'file')}"
