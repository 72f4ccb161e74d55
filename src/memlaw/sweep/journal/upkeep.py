"""Maintenance of a journal: verify its files, rebuild its table, export its results."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from memlaw.core import files
from memlaw.core.cells import CellResult, result_from_dict
from memlaw.core.config import ADDED
from memlaw.core.errors import ConfigError, JournalError
from memlaw.core.sealed import Fault, Inspection, unseal
from memlaw.sweep.journal.journal import CELLS, CHECKPOINTS, FAILURES, QUARANTINE, Journal, cell_files, not_a_probe
from memlaw.sweep.journal.sealed import unseal_cell
from memlaw.sweep.journal.spec import PROBE, ProbeSpec
from memlaw.sweep.journal.table import FORMATS, TABLE, Rows, rows_of, table_of


@dataclass(frozen=True)
class VerifyReport:
    """The state of every file of a journal."""

    out: str
    intact: bool
    """No file is damaged or unreadable, including probe.json."""
    finished: int
    diverged: int
    failed: int
    table: Literal["current", "outdated", "absent"]
    """Whether results.parquet agrees with the cells; if not, `rebuild` fixes it."""
    damaged: tuple[Fault, ...]
    """Files whose content has changed since they were written."""
    unreadable: tuple[Fault, ...]
    """Files that the system cannot read, or that another version of memlaw wrote."""
    quarantined: tuple[str, ...]
    """Names of the files that were moved to quarantine earlier."""
    leftovers: tuple[str, ...]
    """Temporary files of killed or running writers; they are harmless."""


@dataclass(frozen=True)
class RebuildReport:
    """What `rebuild` did."""

    out: str
    rows: int
    """Rows of results.parquet."""
    restored: tuple[str, ...]
    """Keys of cells whose intact result came back from quarantine."""
    findings: tuple[str, ...]
    """Sentences about damaged files, which are in quarantine now."""


def verify(root: str | os.PathLike[str]) -> VerifyReport:
    """Check the SHA-256 of every file in a probe's directory. Reads only: nothing is moved, written or removed.

    Raises JournalError if `root` is not a probe directory.
    """
    inspection = _Inspection(_probe_directory(root))
    inspection.spec()
    inspection.checkpoints()
    results = inspection.results()
    statuses = [result.status for result in results.values()]
    return VerifyReport(
        out=str(root),
        intact=not inspection.damaged and not inspection.unreadable,
        finished=statuses.count("finished"),
        diverged=statuses.count("diverged"),
        failed=statuses.count("failed"),
        table=_table_state(inspection.root / TABLE, rows_of(results)),
        damaged=tuple(inspection.damaged),
        unreadable=tuple(inspection.unreadable),
        quarantined=tuple(path.name for path in cell_files(inspection.root / QUARANTINE)),
        leftovers=tuple(sorted(str(path.relative_to(inspection.root)) for path in inspection.root.rglob(".*.tmp"))),
    )


def rebuild(root: str | os.PathLike[str]) -> RebuildReport:
    """Move damaged files to quarantine and intact ones back, then make results.parquet from the cells.

    Also removes temporary files of killed writers. Raises JournalError if `root` is not a probe directory or cannot be
    written.
    """
    journal = Journal(_probe_directory(root))
    restored = journal.restore()
    rows = journal.write_table()
    return RebuildReport(str(root), rows, restored, tuple(journal.findings))


def export(root: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Write all results as one table to `out`, in the format of its suffix (.csv, .jsonl, .parquet); returns its rows.

    Made from the verified cells, not from results.parquet. Raises ConfigError for any other suffix, JournalError if
    `root` is not a probe directory or `out` cannot be written.
    """
    path = Path(out)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{out} has no suffix of a known format. Choose a name that ends in {', '.join(FORMATS)}.")
    rows = rows_of(Journal(_probe_directory(root)).results_by_key())
    try:
        files.make_folders(path.parent)
        files.write(path, FORMATS[path.suffix](rows))
    except OSError as error:
        raise JournalError(
            f"Cannot write {out}: {error.strerror or error}. The journal is unchanged; choose another file."
        ) from error
    return len(rows)


class _Inspection(Inspection):
    """Reads a journal once."""

    def spec(self) -> ProbeSpec | None:
        return self.read(self.root / PROBE, lambda content: ProbeSpec.from_dict(unseal(content)))

    def results(self) -> dict[str, CellResult]:
        """As `Journal.results_by_key`, but for files with a fault."""
        results = {}
        for folder in (FAILURES, CELLS):
            for path in cell_files(self.root / folder):
                result = self.read(path, partial(_result, path.stem))
                if result is not None:
                    results[path.stem] = result
        return results

    def checkpoints(self) -> None:
        for folder in sorted((self.root / CHECKPOINTS).glob("*")):
            for saved in files.numbered(folder):
                try:
                    files.check_signed(saved)
                except ValueError as error:
                    self.damaged.append(self.fault(saved, str(error)))


def _result(key: str, content: bytes) -> CellResult:
    return result_from_dict(unseal_cell(key, content))


def _table_state(path: Path, rows: Rows) -> Literal["current", "outdated", "absent"]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        return "absent"
    except (OSError, pyarrow.ArrowException):  # damaged, but no fault of the journal: the table is never read back
        return "outdated"
    fresh = table_of(rows)
    known = [name for name in fresh.column_names if name in table.column_names or name not in ADDED]
    return "current" if table.equals(fresh.select(known)) else "outdated"


def _probe_directory(root: str | os.PathLike[str]) -> Path:
    """Raises JournalError unless `root` has a probe.json or cells, which are valid without it."""
    path = Path(root)
    if not (path / PROBE).exists() and not (path / CELLS).is_dir():
        raise not_a_probe(path)
    return path
