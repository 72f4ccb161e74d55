"""The files of one probe, and the only way to them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from memlaw.core import files
from memlaw.core.canonical import to_dict
from memlaw.core.cells import CellResult, result_from_dict
from memlaw.core.errors import ConfigError, JournalError
from memlaw.sweep.journal.sealed import seal, unseal, unseal_cell
from memlaw.sweep.journal.spec import PROBE, ProbeSpec, differences, name_of_pack
from memlaw.sweep.journal.table import TABLE, as_parquet, rows_of

CELLS, FAILURES, QUARANTINE, CHECKPOINTS = "cells", "failures", "quarantine", "checkpoints"


class Journal:
    """The files of one probe under `root`; nothing is created before something is written.

    `findings` collects, in sentences, what was found damaged or contradictory and put in quarantine.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.findings: list[str] = []
        self._intact: set[str] = set()
        """Cells whose files this object has found intact: they never change again."""

    # --- whose directory this is ---

    def claim(self, spec: ProbeSpec) -> ProbeSpec:
        """Make the directory that of `spec`, or join the run that has the same identity; returns the spec on file.

        Raises JournalError if it belongs to another run, holds something else, or cannot be written.
        """
        path = self.root / PROBE
        if self._read(path) is None:
            self._check_unused()
            self._place(path, seal(dataclasses.asdict(spec)), replace=False)
        present = self.spec()
        differing = differences(present.identity, spec.identity)
        if differing:
            raise JournalError(
                f"{self.root} belongs to another run; they differ in {'; '.join(differing)}. The results of two runs "
                "in one directory would be taken for one sweep. Give another --out, or repeat the flags of that run."
            )
        return present

    @property
    def claimed(self) -> bool:
        """Whether a run has written down what this directory is the probe of; its packs are the ones that count."""
        return (self.root / PROBE).exists()

    def spec(self) -> ProbeSpec:
        """What this directory is the probe of. Raises JournalError if it is none, or its probe.json is damaged."""
        path = self.root / PROBE
        content = self._read(path)
        if content is None:
            raise JournalError(f"{self.root} is not the directory of a probe: it has no {PROBE}. Check the path.")
        try:
            body = unseal(content)
        except ValueError as error:
            raise JournalError(
                f"{path} is damaged ({error}), so nobody can tell which run the directory belongs to. Its cells are "
                "checked one by one and keep their worth: put the file back from a copy, or start the probe with "
                "another --out and, once it runs, copy the files of cells/ there."
            ) from error
        try:
            return ProbeSpec.from_dict(body)
        except (KeyError, TypeError) as error:
            raise _other_version(path) from error

    def _check_unused(self) -> None:
        strangers = sorted(entry.name for entry in self.root.glob("*") if not files.is_temporary(entry))
        if strangers and self._read(self.root / PROBE) is None:  # a run that starts beside this one writes it first
            raise JournalError(
                f"{self.root} is not the directory of a probe: it has no {PROBE} but holds {strangers[0]}"
                f"{' and more' if len(strangers) > 1 else ''}. Nothing was written there: give another --out."
            )

    # --- cells ---

    def publish(self, result: CellResult) -> None:
        """Record a result; once this returns, it survives a kill. The first result of a cell is the one that counts.

        The same result again is welcome; a different one of the same cell goes to quarantine and into `findings`. One
        with status "failed" means nothing once the cell has another. Raises JournalError if nothing could be recorded.
        """
        content = seal(to_dict(result))
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
                    f"{path} is damaged and cannot be moved to quarantine, so the result cannot take its place. Move "
                    "it out of the way, then repeat the command: it trains only what is missing."
                ) from damage
            self._set_aside(key, content)
            return

    def holds(self, key: str) -> bool:
        """Whether the cell has a result that counts (finished or diverged) in an intact file; a damaged one is moved to
        quarantine. A file is read once: after that only its being there is looked at."""
        path = self._file(CELLS, key)
        if key in self._intact:
            return path.exists()
        return self._checked(path) is not None

    def results(self) -> tuple[CellResult, ...]:
        """One result for every cell that was tried, sorted by key: the one that counts, or else why the cell failed.

        Every file is verified; a damaged one is moved to quarantine, told in `findings` and not counted, so that a
        re-run trains the cell again. Raises JournalError if files cannot be read or were written by another version.
        """
        return tuple(result for _, result in sorted(self.results_by_key().items()))

    def results_by_key(self) -> dict[str, CellResult]:
        """The same by the names of their files, which an older version may have made of fewer settings."""
        return dict(self._results_in(FAILURES)) | dict(self._results_in(CELLS))

    def _results_in(self, folder: str) -> Iterator[tuple[str, CellResult]]:
        for path in cell_files(self.root / folder):
            body = self._checked(path)
            if body is None:
                continue
            try:
                yield path.stem, result_from_dict(body)
            except (KeyError, TypeError, ConfigError) as error:
                raise _other_version(path) from error

    def _checked(self, path: Path) -> dict[str, Any] | None:
        """The body of a cell's file; None if there is none, or no longer, since it was damaged."""
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
        """None if it is not there: another process may just have put it in quarantine."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def _file(self, folder: str, key: str) -> Path:
        return self.root / folder / f"{key}.json"

    def checkpoint(self, pack: Sequence[str]) -> Path:
        """Where the training of a pack saves itself, given the keys of its cells."""
        return self.root / CHECKPOINTS / name_of_pack(pack)

    # --- quarantine ---

    def _quarantined(self, key: str, content: bytes) -> Path:
        return self.root / QUARANTINE / f"{key}.{hashlib.sha256(content).hexdigest()[:16]}.json"

    def _set_aside(self, key: str, content: bytes) -> None:
        self._place(self._quarantined(key, content), content, replace=True)
        self.findings.append(
            f"Cell {key} was trained again with another result: the first one counts, the other is in quarantine. Runs "
            "on different machines or library versions do this; give each its own directory."
        )

    def _quarantine(self, path: Path, content: bytes, damage: ValueError) -> bool:
        """Move a damaged file aside and tell; False if it cannot be moved."""
        aside = self._quarantined(path.stem, content)
        finding = f"{path.relative_to(self.root)} was damaged ({damage}) and does not count"
        try:
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)
            moved = aside.read_bytes()
        except FileNotFoundError:  # another process was quicker, and tells
            return True
        except OSError as error:
            self.findings.append(f"{finding}; it cannot be moved to quarantine: {error.strerror or error}.")
            return False
        if moved != content:  # what another process had put in its place between the reading and the moving
            self._place(path, moved, replace=False)
            self._place(aside, content, replace=True)
        self.findings.append(f"{finding}; it is in quarantine. The same probe command trains the cell again.")
        return True

    def restore(self) -> tuple[str, ...]:
        """Give cells without a result the intact one that quarantine holds of them, if any; returns their keys.

        There is one where two runs disagreed and the first result was damaged since, or where a process was killed
        while it corrected a mistake of `_quarantine`.
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

    # --- the table ---

    def write_table(self) -> int:
        """Rebuild results.parquet: one row for every result, sorted by key, so that the same cells give the same bytes.

        Also tidies up what killed writers left. Returns the number of rows.
        """
        for folder in (self.root, *map(self.root.joinpath, (CELLS, FAILURES, QUARANTINE))):
            files.sweep(folder)
        rows = rows_of(self.results_by_key())
        self._place(self.root / TABLE, as_parquet(rows), replace=True)
        return len(rows)

    # --- the one way anything is written ---

    def _place(self, path: Path, content: bytes, *, replace: bool) -> bool:
        """Put `content` at `path`, whole and on disk, or not at all. False if a file with another content is there."""
        try:
            files.make_folders(path.parent)
            return files.write(path, content, replace=replace)
        except OSError as error:
            raise JournalError(
                f"Cannot write {path.name} in {path.parent}: {error.strerror or error}. It was not recorded; what was "
                "recorded before is safe. Make room or repair the disk, then repeat the command: it trains only what "
                "is missing."
            ) from error


def cell_files(folder: Path) -> list[Path]:
    """The files of cells in a folder of the journal, without those still being written. Raises JournalError."""
    try:
        return sorted(folder.glob("[!.]*.json"))
    except OSError as error:
        raise _unreadable(folder, error) from error


def _counts(key: str, content: bytes) -> bool:
    """Whether it is an intact result of the cell, and not a failure."""
    try:
        return unseal_cell(key, content).get("status") != "failed"
    except ValueError:
        return False


def _unreadable(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"Cannot read {path}: {error.strerror or error}. Without it cells might be trained twice or left out. Make it "
        "readable, then repeat the command."
    )


def _other_version(path: Path) -> JournalError:
    return JournalError(
        f"{path} is intact but has other fields than this version of memlaw knows, or other values. Reading on would "
        "leave results out: use the version that wrote it, or a newer one."
    )
