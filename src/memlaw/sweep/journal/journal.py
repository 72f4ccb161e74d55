"""Reading and writing the files of one probe."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memlaw.core import files
from memlaw.core.cells import CellResult, result_from_dict, result_to_dict
from memlaw.core.config import ADDED
from memlaw.core.errors import JournalError
from memlaw.core.sealed import UNKNOWN_FIELDS, seal, unseal
from memlaw.sweep.journal.sealed import unseal_cell
from memlaw.sweep.journal.spec import PROBE, ProbeSpec, differences, extends, pack_name
from memlaw.sweep.journal.table import TABLE, as_parquet, rows_of

CELLS, FAILURES, QUARANTINE, CHECKPOINTS = "cells", "failures", "quarantine", "checkpoints"


class Journal:
    """The files of one probe under `root`; no folder is created before the first write.

    `findings` collects sentences about files that were damaged or contradictory and went to quarantine.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.findings: list[str] = []
        self._intact: set[str] = set()
        """Keys of cells whose files this object has verified; such a file never changes again."""

    def claim(self, spec: ProbeSpec) -> ProbeSpec:
        """Claim the directory for `spec`, join the run of the same identity there, or extend its grid.

        Returns the spec on file. One that extends the grid must begin with the packs of the spec there. Raises
        JournalError if the directory belongs to another run, holds other files, or cannot be written.
        """
        path = self.root / PROBE
        if self._read(path) is None:
            self._check_unused()
            self._place(path, seal(dataclasses.asdict(spec)), replace=False)
        present = self.spec()
        kept = spec.packs[: len(present.packs)] == present.packs
        if present.identity != spec.identity and kept and extends(spec.identity, present.identity):
            self._place(path, seal(dataclasses.asdict(spec)), replace=True)
            present = self.spec()
        self._refuse_other(present.identity, spec.identity)
        return present

    def check_claimable(self, known: Mapping[str, Any]) -> None:
        """Raise JournalError if a grid, as far as its identity is `known`, can neither claim, join nor extend this one.

        Takes milliseconds, so it comes before a model is loaded. Nothing is written.
        """
        if not self.claimed:
            self._check_unused()
            return
        there = {name: value for name, value in self.spec().identity.items() if name in {*known, *ADDED}}
        if not extends(known, there):
            self._refuse_other(there, known)

    def _refuse_other(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        differing = differences(there, here)
        if differing:
            raise JournalError(
                f"{self.root} belongs to another run, which differs in {'; '.join(differing)}. Two runs in one "
                "directory would be mistaken for one sweep. Choose another --out, or repeat the flags of that run; "
                "ranks, lengths, methods and seeds may be added to it."
            )

    @property
    def claimed(self) -> bool:
        """Whether a run has claimed the directory; later runs train the packs it wrote down."""
        return (self.root / PROBE).exists()

    def spec(self) -> ProbeSpec:
        """The settings and packs in probe.json. Raises JournalError if it is missing or damaged."""
        path = self.root / PROBE
        content = self._read(path)
        if content is None:
            raise not_a_probe(self.root)
        try:
            body = unseal(content)
        except ValueError as error:
            raise JournalError(
                f"{path} is damaged ({error}), so the run that the directory belongs to is unknown. Its cells remain "
                "valid, since each is verified on its own. Restore the file from a backup, or start the probe with "
                "another --out and, once it runs, copy the files of cells/ there."
            ) from error
        try:
            return ProbeSpec.from_dict(body)
        except UNKNOWN_FIELDS as error:
            raise _other_version(path) from error

    def _check_unused(self) -> None:
        strangers = sorted(entry.name for entry in self.root.glob("*") if not files.is_temporary(entry))
        if strangers and self._read(self.root / PROBE) is None:  # a run that starts beside this one writes it first
            raise JournalError(
                f"{self.root} is not a probe directory: it has no {PROBE} but contains {strangers[0]}"
                f"{' and more' if len(strangers) > 1 else ''}. Nothing was written there. Choose another --out."
            )

    def publish(self, result: CellResult) -> None:
        """Record a result; once this returns, it survives a kill. The first result of a cell counts.

        Publishing the same result again changes nothing; a different result of the same cell goes to quarantine and
        into `findings`. A result with status "failed" is ignored once the cell has another. Raises JournalError if
        nothing could be recorded.
        """
        content = seal(result_to_dict(result))
        key = result.cell.key
        if result.status == "failed":
            self._place(self._file(FAILURES, key), content, replace=True)
            return
        path = self._file(CELLS, key)
        while not self._place(path, content, replace=False):
            present = self._read(path)
            if present is None:
                continue
            try:
                unseal_cell(key, present)
            except ValueError as damage:
                if self._quarantine(path, present, damage):
                    continue
                raise JournalError(
                    f"{path} is damaged and cannot be moved to quarantine, so the new result cannot replace it. Move "
                    "the file elsewhere, then rerun the command: finished cells are skipped."
                ) from damage
            self._set_aside(key, content)
            return

    def holds(self, key: str) -> bool:
        """Whether the cell has a result that counts (finished or diverged) in an intact file.

        A damaged file is moved to quarantine. A file that was verified once is only checked for existence afterwards.
        """
        path = self._file(CELLS, key)
        if key in self._intact:
            return path.exists()
        return self._checked(path) is not None

    def results(self) -> tuple[CellResult, ...]:
        """One result for every cell that was tried, sorted by key: the one that counts, or else its last failure.

        Every file is verified. A damaged file is moved to quarantine, reported in `findings` and not counted, so that
        the next run trains the cell again. Raises JournalError if files cannot be read or come from another version.
        """
        return tuple(result for _, result in sorted(self.results_by_key().items()))

    def results_by_key(self) -> dict[str, CellResult]:
        """The same results by file name. The name is not always `cell.key`: older versions hashed fewer settings."""
        return dict(self._results_in(FAILURES)) | dict(self._results_in(CELLS))

    def _results_in(self, folder: str) -> Iterator[tuple[str, CellResult]]:
        for path in cell_files(self.root / folder):
            body = self._checked(path)
            if body is None:
                continue
            try:
                yield path.stem, result_from_dict(body)
            except UNKNOWN_FIELDS as error:
                raise _other_version(path) from error

    def _checked(self, path: Path) -> dict[str, Any] | None:
        """The body of a cell's file; None if the file is missing or was just moved to quarantine."""
        content = self._read(path)
        if content is None:
            return None
        try:
            body = unseal_cell(path.stem, content)
        except ValueError as damage:
            self._quarantine(path, content, damage)
            return None
        if path.parent.name == CELLS:
            self._intact.add(path.stem)
        return body

    def _read(self, path: Path) -> bytes | None:
        """None if the file is missing: another process may just have moved it to quarantine."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def _file(self, folder: str, key: str) -> Path:
        return self.root / folder / f"{key}.json"

    def checkpoint(self, pack: Sequence[str]) -> Path:
        """The folder for checkpoints of a pack, given the keys of its cells."""
        return self.root / CHECKPOINTS / pack_name(pack)

    def _quarantined(self, key: str, content: bytes) -> Path:
        return self.root / QUARANTINE / f"{key}.{hashlib.sha256(content).hexdigest()[:16]}.json"

    def _set_aside(self, key: str, content: bytes) -> None:
        self._place(self._quarantined(key, content), content, replace=True)
        self.findings.append(
            f"Cell {key} was trained twice with different results. The first result counts, the second is in "
            "quarantine. Machines or library versions that differ cause this; give each its own directory."
        )

    def _quarantine(self, path: Path, content: bytes, damage: ValueError) -> bool:
        """Move a damaged file to quarantine and note it in `findings`; False if it cannot be moved."""
        aside = self._quarantined(path.stem, content)
        finding = f"{path.relative_to(self.root)} was damaged ({damage}) and is ignored"
        try:
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)
            moved = aside.read_bytes()
        except FileNotFoundError:  # another process moved it first, and reports it
            return True
        except OSError as error:
            self.findings.append(f"{finding}. It cannot be moved to quarantine: {error.strerror or error}.")
            return False
        if moved != content:  # between the read and the move, another process replaced the damaged file
            self._place(path, moved, replace=False)
            self._place(aside, content, replace=True)
        self.findings.append(f"{finding}. It is in quarantine; rerun the probe to train the cell again.")
        return True

    def restore(self) -> tuple[str, ...]:
        """Move intact results of cells that have none back from quarantine; returns their keys.

        Quarantine holds such a result if two runs disagreed and the first result was damaged later, or if a process was
        killed while `_quarantine` put back a file that another process had just written.
        """
        restored = []
        for path in cell_files(self.root / QUARANTINE):
            key = path.name.partition(".")[0]
            content = self._read(path)
            if content is not None and not self.holds(key) and _counts(key, content):
                self._place(self._file(CELLS, key), content, replace=False)
                path.unlink(missing_ok=True)
                restored.append(key)
        return tuple(restored)

    def write_table(self) -> int:
        """Rebuild results.parquet, one row per result sorted by key: the same cells give the same bytes.

        Also removes temporary files of killed writers. Returns the number of rows.
        """
        for folder in (self.root, *map(self.root.joinpath, (CELLS, FAILURES, QUARANTINE))):
            files.sweep(folder)
        rows = rows_of(self.results_by_key())
        self._place(self.root / TABLE, as_parquet(rows), replace=True)
        return len(rows)

    def _place(self, path: Path, content: bytes, *, replace: bool) -> bool:
        """Write `content` to `path`, whole and on disk, or not at all; False if the file exists with other content."""
        try:
            files.make_folders(path.parent)
            return files.write(path, content, replace=replace)
        except OSError as error:
            raise JournalError(
                f"Cannot write {path.name} in {path.parent}: {error.strerror or error}. This result is not recorded; "
                "earlier results are safe. Free some space or repair the disk, then rerun the command: finished cells "
                "are skipped."
            ) from error


def cell_files(folder: Path) -> list[Path]:
    """The files of cells in a folder of the journal, without temporary files. Raises JournalError."""
    try:
        return sorted(folder.glob("[!.]*.json"))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _counts(key: str, content: bytes) -> bool:
    """Whether the content is an intact result of the cell other than a failure."""
    try:
        return unseal_cell(key, content).get("status") != "failed"
    except ValueError:
        return False


def _unreadable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"Cannot read {path}: {error.strerror or error}. Without it, cells could be trained twice or left out. Make it "
        "readable, then rerun the command."
    )


def _other_version(path: Path) -> JournalError:
    return JournalError(
        f"{path} is intact but has fields or values that this version of memlaw does not know, so results would be "
        "left out. Use the version that wrote it, or a newer one."
    )


def not_a_probe(directory: Path) -> JournalError:
    """The error for a directory that no probe has claimed."""
    return JournalError(f"{directory} is not a probe directory: it has no {PROBE}. Check the path.")
