"""How far a probe has come, read from its directory alone, from any machine, while others train."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from memlaw.core import files
from memlaw.sweep.journal.journal import CELLS, CHECKPOINTS, FAILURES, Journal
from memlaw.sweep.journal.sealed import unseal_cell

_STATE = "state.json"
"""Same as `memlaw.training.checkpoint.STATE`, which cannot be imported without torch."""


@dataclass(frozen=True)
class Reason:
    """A message of failure and the number of cells that failed with it."""

    message: str
    cells: int


@dataclass(frozen=True)
class PackCounts:
    """Packs of which all, some or none of the cells have a result that counts."""

    done: int
    partly: int
    waiting: int


@dataclass(frozen=True)
class CheckpointStatus:
    """A pack in training, or interrupted in it."""

    pack: int
    """From 1, in the order of probe.json."""
    step: int
    """Optimizer steps that the next run skips."""


@dataclass(frozen=True)
class ProbeStatus:
    """How far a probe has come; counts are cells of its grid."""

    out: str
    about: dict[str, Any]
    """Names of model and data."""
    cells: int
    finished: int
    diverged: int
    failed: int
    """The next run retries them."""
    waiting: int
    """Cells without a result, including those in training."""
    damaged: int
    """Cells among `waiting` whose file is damaged or unreadable."""
    reasons: tuple[Reason, ...]
    """Reasons of the failed cells, the most frequent first."""
    packs: PackCounts
    checkpoints: tuple[CheckpointStatus, ...]
    last_activity: str | None
    """When a file last appeared, by the clock of the file system (ISO 8601, UTC); for information only."""


def status(root: str | os.PathLike[str]) -> ProbeStatus:
    """How far the probe in the directory `root` has come. Reads only: nothing is moved, written or removed.

    Raises JournalError if `root` is not a probe directory, or its probe.json is damaged.
    """
    journal = Journal(root)
    spec = journal.spec()
    keys = [key for pack in spec.packs for key in pack]
    states = [_state(journal.root, key) for key in keys]
    counts = Counter(state for state, _ in states)
    reasons = Counter(message for state, message in states if state == "failed")
    counted = {key for key, (state, _) in zip(keys, states, strict=True) if state in ("finished", "diverged")}
    return ProbeStatus(
        out=str(root),
        about=spec.about,
        cells=len(keys),
        finished=counts["finished"],
        diverged=counts["diverged"],
        failed=counts["failed"],
        waiting=counts["waiting"] + counts["damaged"],
        damaged=counts["damaged"],
        reasons=tuple(Reason(message, cells) for message, cells in reasons.most_common()),
        packs=_pack_counts([[key in counted for key in pack] for pack in spec.packs]),
        checkpoints=_checkpoints(journal, spec.packs),
        last_activity=_last_activity(journal.root),
    )


def _state(root: Path, key: str) -> tuple[str, str]:
    """(finished, diverged, failed, damaged or waiting; the message of a failure)."""
    state, message = _read(root / CELLS / f"{key}.json", key)
    return _read(root / FAILURES / f"{key}.json", key) if state == "waiting" else (state, message)


def _read(path: Path, key: str) -> tuple[str, str]:
    try:
        body: Mapping[str, Any] = unseal_cell(key, path.read_bytes())
    except FileNotFoundError:
        return "waiting", ""
    except (OSError, ValueError):
        return "damaged", ""
    return str(body.get("status")), str(body.get("message", ""))


def _pack_counts(packs: Sequence[Sequence[bool]]) -> PackCounts:
    done, begun = sum(map(all, packs)), sum(map(any, packs))
    return PackCounts(done=done, partly=begun - done, waiting=len(packs) - begun)


def _checkpoints(journal: Journal, packs: Sequence[Sequence[str]]) -> tuple[CheckpointStatus, ...]:
    steps = [(number, _newest_step(journal.checkpoint(keys))) for number, keys in enumerate(packs, start=1)]
    return tuple(CheckpointStatus(number, step) for number, step in steps if step is not None)


def _newest_step(checkpoint: Path) -> int | None:
    """The step of the newest checkpoint with a readable state; its tensors are verified on resuming."""
    for saved in files.numbered(checkpoint):
        try:
            return int(json.loads((saved / _STATE).read_bytes())["step"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _last_activity(root: Path) -> str | None:
    times = []
    for folder in (root, root / CELLS, root / FAILURES, *(root / CHECKPOINTS).glob("*")):
        with suppress(OSError):  # not created yet, or a checkpoint that was just removed
            times.append(folder.stat().st_mtime)  # the time of a folder is that of its last new entry
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds") if times else None
