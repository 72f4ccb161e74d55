"""memlaw journal: the journal of a probe inspected, verified, rebuilt and exported."""

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


def status(
    *,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `memlaw probe` writes to.")],
    as_json: AsJson = False,
) -> None:
    """Where the probe in DIR stands, from its journal alone."""
    from memlaw.sweep.journal import status as standing

    found = standing(directory)
    emit(as_json, to_dict(found), status_lines(found))


Probed = Annotated[Path, typer.Argument(metavar="DIR", help="What `memlaw probe` wrote.")]


def verify(*, directory: Probed, as_json: AsJson = False) -> None:
    """Read every file of a probe and check its SHA-256. Exits with 2 if one is damaged; nothing is changed."""
    from memlaw.sweep.journal import verify as inspect_files

    found = inspect_files(directory)
    emit(as_json, to_dict(found), verify_lines(found))
    if not found.intact:
        raise typer.Exit(2)


def rebuild(*, directory: Probed, as_json: AsJson = False) -> None:
    """Put damaged files of a probe into quarantine, and write results.parquet again from the intact ones."""
    from memlaw.sweep.journal import rebuild as mend

    found = mend(directory)
    emit(as_json, to_dict(found), [*found.findings, f"{found.out}: results.parquet has {found.rows:,} rows."])


def export(
    *,
    directory: Probed,
    out: Annotated[Path, typer.Option(help="The file; its suffix says which format.")],
    as_json: AsJson = False,
) -> None:
    """Write all results of a probe as one table."""
    from memlaw.sweep.journal import export as write_out

    rows = write_out(directory, out)
    emit(as_json, {"out": str(out), "rows": rows}, [f"{out}: {rows:,} rows."])


def status_lines(found: ProbeStatus) -> Iterator[str]:
    """Where a probe stands."""
    yield f"{found.out}: {found.finished:,} of {counted(found.cells, 'cell')} finished."
    rows = {
        "diverged": f"{found.diverged:,}" if found.diverged else "",
        "failed": f"{found.failed:,}, to be tried again" if found.failed else "",
        "waiting": f"{found.waiting:,}" if found.waiting else "",
        "damaged": f"{found.damaged:,}; see `memlaw journal verify {found.out}`" if found.damaged else "",
        "packs": f"{found.packs.done:,} done, {found.packs.partly:,} partly, {found.packs.waiting:,} waiting",
        "in training": ", ".join(f"pack {at.pack} at step {at.step:,}" for at in found.checkpoints),
        "last activity": found.last_activity or "",
    }
    yield from aligned_rows({name: text for name, text in rows.items() if text})
    for reason in found.reasons:
        yield from paragraph(f"{counted(reason.cells, 'cell')} failed: {reason.message}", indent=2)


def verify_lines(found: VerifyReport) -> Iterator[str]:
    """The state of a journal's files."""
    state = "every file is intact" if found.intact else "not every file is intact"
    yield f"{found.out}: {found.finished:,} finished, {found.diverged:,} diverged, {found.failed:,} failed; {state}."
    for fault in (*found.damaged, *found.unreadable):
        yield from paragraph(f"{fault.path}: {fault.why}", indent=2)
    if found.table != "current":
        yield f"  results.parquet is {found.table}: `memlaw journal rebuild {found.out}` writes it."
    for name, files in (("in quarantine", found.quarantined), ("left by killed writers", found.leftovers)):
        if files:
            yield f"  {name}: {counted(len(files), 'file')}"
