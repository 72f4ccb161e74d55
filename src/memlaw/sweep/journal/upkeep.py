"""Looking after a journal: is it intact, rebuild what can be rebuilt, hand it on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from memlaw.core import files
from memlaw.core.cells import CellResult, result_from_dict
from memlaw.core.errors import ConfigError, JournalError
from memlaw.sweep.journal.journal import CELLS, CHECKPOINTS, FAILURES, QUARANTINE, Journal, cell_files
from memlaw.sweep.journal.sealed import unseal, unseal_cell
from memlaw.sweep.journal.spec import PROBE, ProbeSpec
from memlaw.sweep.journal.table import FORMATS, TABLE, Rows, rows_of, table_of

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """A file that cannot be used, and why."""

    path: str
    """Within the directory."""
    why: str


@dataclass(frozen=True)
class VerifyReport:
    """The state of every file of a journal."""

    out: str
    intact: bool
    """Nothing is damaged or unreadable, probe.json included."""
    finished: int
    diverged: int
    failed: int
    table: Literal["current", "outdated", "absent"]
    """results.parquet against the cells; anything but current is mended by `rebuild`."""
    damaged: tuple[Fault, ...]
    """Files that are not what was written."""
    unreadable: tuple[Fault, ...]
    """Files that the system does not give, or that another version of memlaw wrote."""
    quarantined: tuple[str, ...]
    """Names of the files put aside earlier."""
    leftovers: tuple[str, ...]
    """Temporary files of killed writers, or of ones at work; they do no harm."""


@dataclass(frozen=True)
class RebuildReport:
    """What was put in order."""

    out: str
    rows: int
    """Of results.parquet."""
    restored: tuple[str, ...]
    """Cells that got an intact result back from quarantine."""
    findings: tuple[str, ...]
    """What was damaged, in sentences; its files are in quarantine now."""


def verify(root: str | os.PathLike[str]) -> VerifyReport:
    """Read every file of a probe's directory and check its SHA-256; nothing is moved, written or removed.

    Raises JournalError if the directory is none of a probe.
    """
    inspection = _Inspection(_directory_of_a_probe(root))
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
    """Make results.parquet from the cells, having put damaged files in quarantine and intact ones back from there.

    Removes what killed writers left. Raises JournalError if the directory is none of a probe, or cannot be written.
    """
    journal = Journal(_directory_of_a_probe(root))
    restored = journal.restore()
    rows = journal.write_table()
    return RebuildReport(str(root), rows, restored, tuple(journal.findings))


def export(root: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Write all results as one table to the file `out`, as its suffix says: .csv, .jsonl or .parquet; returns its rows.

    Made from the cells, each verified, and not from results.parquet. Raises ConfigError for another suffix, and
    JournalError if the directory is none of a probe or `out` cannot be written.
    """
    path = Path(out)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{out} names no format that is known here: choose a name in {', '.join(FORMATS)}.")
    rows = rows_of(Journal(_directory_of_a_probe(root)).results_by_key())
    try:
        files.make_folders(path.parent)
        files.write(path, FORMATS[path.suffix](rows))
    except OSError as error:
        raise JournalError(f"Cannot write {out}: {error.strerror or error}. The journal is as it was.") from error
    return len(rows)


class _Inspection:
    """One reading of a journal, with the faults it met."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[Fault] = []
        self.unreadable: list[Fault] = []

    def spec(self) -> ProbeSpec | None:
        return self._opened(self.root / PROBE, lambda content: ProbeSpec.from_dict(unseal(content)))

    def results(self) -> dict[str, CellResult]:
        """Like `Journal.results_by_key`, of what can be used."""
        found = {}
        for folder in (FAILURES, CELLS):
            for path in cell_files(self.root / folder):
                result = self._opened(path, partial(_result, path.stem))
                if result is not None:
                    found[path.stem] = result
        return found

    def checkpoints(self) -> None:
        for folder in sorted((self.root / CHECKPOINTS).glob("*")):
            for saved in files.numbered(folder):
                try:
                    files.check_signed(saved)
                except ValueError as error:
                    self.damaged.append(self._fault(saved, str(error)))

    def _opened(self, path: Path, read: Callable[[bytes], T]) -> T | None:
        try:
            return read(path.read_bytes())
        except OSError as error:
            self.unreadable.append(self._fault(path, error.strerror or str(error)))
        except (KeyError, TypeError, ConfigError):
            self.unreadable.append(self._fault(path, "it has fields or values of another version of memlaw"))
        except ValueError as error:
            self.damaged.append(self._fault(path, str(error)))
        return None

    def _fault(self, path: Path, why: str) -> Fault:
        return Fault(str(path.relative_to(self.root)), why)


def _result(key: str, content: bytes) -> CellResult:
    return result_from_dict(unseal_cell(key, content))


def _table_state(path: Path, rows: Rows) -> Literal["current", "outdated", "absent"]:
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        return "absent"
    except (OSError, pyarrow.ArrowException):  # damaged: never read for its results, so no fault of the journal
        return "outdated"
    return "current" if found.equals(table_of(rows)) else "outdated"


def _directory_of_a_probe(root: str | os.PathLike[str]) -> Path:
    """Raises JournalError. One whose probe.json is gone still counts: its cells keep their worth."""
    path = Path(root)
    if not (path / PROBE).exists() and not (path / CELLS).is_dir():
        raise JournalError(f"{path} is not the directory of a probe: it has no {PROBE}. Check the path.")
    return path
