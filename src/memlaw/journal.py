"""The journal of a probe: one immutable file for every finished cell, and everything else rebuilt from them.

    OUT/probe.json          what this directory is the probe of; written once, by the first run
    OUT/cells/KEY.json      the result of a cell; first writer wins, never changed again
    OUT/failures/KEY.json   why a cell could not be finished the last time; means nothing once the cell is there
    OUT/quarantine/         files that cannot be trusted, kept for a person to look at
    OUT/results.parquet     all of it as one table; may be deleted, is rebuilt

A file appears under its name whole or not at all, and holds the SHA-256 of its body. Any number of processes may write
to one directory, and any of them may be killed at any moment: a cell that was acknowledged is there, once, readable.
Kills, full disks and damaged files are covered; disks that lie about fsync and file systems without hard links are not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlaw import durable
from memlaw.errors import ConfigError, JournalError
from memlaw.records import CellResult, TrainConfig, canonical_json, digest, result_from_dict, to_dict

PROBE = "probe.json"
TABLE = "results.parquet"


@dataclass(frozen=True)
class ProbeSpec:
    """What a probe directory is for: the settings that set its cells apart, and which of them train together."""

    identity: dict[str, Any]
    """Plain JSON values; another run may share the directory only if all of them are equal."""
    packs: tuple[tuple[str, ...], ...]
    """Keys of the cells that train as one stack, fixed once so that a cell's bits do not depend on when it ran."""
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    """For people: the names of model and data, which may differ between runs of the same probe."""


class Journal:
    """The files of one probe under `root`; nothing is created before something is written.

    `findings` collects, in sentences, what was found damaged or contradictory and put in quarantine.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.findings: list[str] = []

    # --- whose directory this is ---

    def claim(self, spec: ProbeSpec) -> ProbeSpec:
        """Make the directory that of `spec`, or join the run that has the same identity; returns the spec on file.

        Raises JournalError if it belongs to another run, holds something else, or cannot be written.
        """
        path = self.root / PROBE
        if self._read(path) is None:
            self._check_unused()
            self._place(path, _seal(dataclasses.asdict(spec)), replace=False)
        present = self.spec()
        differing = _differences(present.identity, spec.identity)
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
            body = _unseal(content)
        except ValueError as error:
            raise JournalError(
                f"{path} is damaged ({error}), so nobody can tell which run the directory belongs to. Its cells are "
                "checked one by one and keep their worth: put the file back from a copy, or start the probe with "
                "another --out and, once it runs, copy the files of cells/ there."
            ) from error
        try:
            return ProbeSpec(body["identity"], tuple(map(tuple, body["packs"])), body["about"])
        except (KeyError, TypeError) as error:
            raise _other_version(path) from error

    def _check_unused(self) -> None:
        strangers = sorted(entry.name for entry in self.root.glob("*") if not durable.is_temporary(entry))
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
        content = _seal(to_dict(result))
        key = result.cell.key
        if result.status == "failed":
            self._place(self._failure(key), content, replace=True)
            return
        path = self._cell(key)
        while not self._place(path, content, replace=False):
            present = self._read(path)
            if present is None:
                continue
            if present == content:
                return
            if not _damage(key, present):
                self._set_aside(key, content)
                return
            if not self._quarantine(path, present):
                raise JournalError(
                    f"{path} is damaged and cannot be moved to quarantine, so the result cannot take its place. Move "
                    "it out of the way, then repeat the command: it trains only what is missing."
                )

    def holds(self, key: str) -> bool:
        """Whether the cell has a result that counts (finished or diverged)."""
        return self._cell(key).exists()

    def results(self) -> tuple[CellResult, ...]:
        """One result for every cell that was tried, sorted by key: the one that counts, or else why the cell failed.

        Every file is verified; a damaged one is moved to quarantine, told in `findings` and not counted, so that a
        re-run trains the cell again. Raises JournalError if files cannot be read or were written by another version.
        """
        return tuple(result for _, result in sorted(self._results().items()))

    def _results(self) -> dict[str, CellResult]:
        return dict(self._verified("failures")) | dict(self._verified("cells"))

    def _verified(self, folder: str) -> Iterator[tuple[str, CellResult]]:
        for path in sorted((self.root / folder).glob("[!.]*.json")):
            content = self._read(path)
            if content is None:
                continue
            if _damage(path.stem, content):
                self._quarantine(path, content)
                continue
            try:
                yield path.stem, result_from_dict(_unseal(content))
            except (KeyError, TypeError, ConfigError) as error:
                raise _other_version(path) from error

    def _read(self, path: Path) -> bytes | None:
        """None if it is not there: another process may just have put it in quarantine."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error

    def _set_aside(self, key: str, content: bytes) -> None:
        self._place(self._quarantined(key, content), content, replace=True)
        self.findings.append(
            f"Cell {key} was trained again with another result: the first one counts, the other is in quarantine. Runs "
            "on different machines or library versions do this; give each its own directory."
        )

    def _quarantine(self, path: Path, content: bytes) -> bool:
        """Move a damaged file aside and tell; False if it cannot be moved."""
        aside = self._quarantined(path.stem, content)
        finding = f"{path.relative_to(self.root)} was damaged ({_damage(path.stem, content)}) and does not count"
        try:
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)
        except OSError as error:
            self.findings.append(f"{finding}; it cannot be moved to quarantine: {error.strerror or error}.")
            return False
        self.findings.append(f"{finding}; it is in quarantine. The same probe command trains the cell again.")
        return True

    def _cell(self, key: str) -> Path:
        return self.root / "cells" / f"{key}.json"

    def _failure(self, key: str) -> Path:
        return self.root / "failures" / f"{key}.json"

    def _quarantined(self, key: str, content: bytes) -> Path:
        return self.root / "quarantine" / f"{key}.{hashlib.sha256(content).hexdigest()[:16]}.json"

    # --- the table ---

    def write_table(self) -> None:
        """Rebuild results.parquet: one row for every result, sorted by key, so that the same cells give the same bytes.

        `steps` counts the optimizer steps taken; the settings of training are columns too, its budget as `max_steps`.
        """
        import pyarrow
        import pyarrow.parquet

        self._sweep()
        rows = [_row(key, result) for key, result in sorted(self._results().items())]
        types = {
            str: pyarrow.string(),
            int: pyarrow.int64(),
            float: pyarrow.float64(),
            tuple: pyarrow.list_(pyarrow.int64()),
        }
        schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), sink)
        self._place(self.root / TABLE, sink.getvalue().to_pybytes(), replace=True)

    def _sweep(self) -> None:
        """Remove what killed writers left of files that are there by now and never change. A living writer of such a
        file may lose its temporary too: it comes too late in any case, and `durable.write` tells it so."""
        for leftover in (*self.root.glob(f".{PROBE}.*.tmp"), *(self.root / "cells").glob(".*.tmp")):
            if leftover.with_name(durable.final_name(leftover)).exists():
                with contextlib.suppress(OSError):
                    leftover.unlink()

    # --- the one way anything is written ---

    def _place(self, path: Path, content: bytes, *, replace: bool) -> bool:
        """Put `content` at `path`, whole and on disk, or not at all. False if a file is there already."""
        try:
            durable.make_folders(path.parent)
            return durable.write(path, content, replace=replace)
        except OSError as error:
            raise JournalError(
                f"Cannot write {path.name} in {path.parent}: {error.strerror or error}. It was not recorded; what was "
                "recorded before is safe. Make room or repair the disk, then repeat the command: it trains only what "
                "is missing."
            ) from error


# --- what a file says about itself ---


def _seal(body: Any) -> bytes:
    """A body and its SHA-256 as one line of canonical JSON."""
    return (canonical_json({"body": body, "sha256": digest(body)}) + "\n").encode("utf-8", "surrogatepass")


def _unseal(content: bytes) -> Any:
    """The body. Raises ValueError unless `content` is, to the last bit, what `_seal` made of it."""
    try:
        body = json.loads(content)["body"]
        intact = _seal(body) == content
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("it cannot be read as a sealed record") from error
    if not intact:
        raise ValueError("its SHA-256 does not match")
    return body


def _damage(key: str, content: bytes) -> str | None:
    """What is wrong with a cell's file, None if nothing. The key is taken from the text of the file, not from `Cell`,
    so that a later version with more settings still recognises the cells of this one."""
    try:
        body = _unseal(content)
        named = isinstance(body, dict) and digest(body["cell"]) == key
    except (ValueError, KeyError) as error:
        return str(error)
    return None if named else "it is not the cell that its name says"


_ABSENT = "nothing"


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The fields in which two identities differ, in words."""
    names = sorted(there.keys() | here.keys())
    pairs = [(name, there.get(name, _ABSENT), here.get(name, _ABSENT)) for name in names]
    return [f"{name} (there {_brief(old)}, here {_brief(new)})" for name, old, new in pairs if old != new]


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 60 else f"{text[:24]}...{text[-8:]}"


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


# --- rows of the table -----------------------------------------------------------------------------------------------

_TRAIN_KINDS: dict[str, type] = {f.name: type(f.default) for f in dataclasses.fields(TrainConfig)}

COLUMNS: dict[str, type] = {
    "key": str,
    "model": str,
    "placement": str,
    "rank": int,
    "parameters": int,
    "length": int,
    "method": str,
    "seed": int,
    "steps": int,
    "loss_init": float,
    "loss_final": float,
    "delta_loss": float,
    "acc_token": float,
    "acc_em": float,
    "ordered": int,
    "certified": int,
    "status": str,
    "records": int,
    "message": str,
    "tokenizer": str,
    "data": str,
    "dtype": str,
    "algorithm": int,
    "max_steps": int,
} | {name: kind for name, kind in _TRAIN_KINDS.items() if name not in ("method", "seed", "steps")}
"""Columns of results.parquet and their types; any of them may be null where a cell has no such number."""


def _row(key: str, result: CellResult) -> dict[str, Any]:
    measured = to_dict(result)
    cell = measured.pop("cell")
    train = cell.pop("train")
    budget = train.pop("steps")
    return {"key": key, **cell, **train, **measured, "max_steps": budget}
