"""Cells that take time and compute nothing, through the real engines into a real journal."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import TrainConfig
from memlaw.sweep.engines.base import Engine, Resources
from memlaw.sweep.journal import Journal


def specs(packs: int, cells: int, seconds: float) -> list[str]:
    """Packs of `cells` cells each, which take `seconds` in total."""
    return [json.dumps({"pack": pack, "cells": cells, "seconds": seconds}) for pack in range(packs)]


def result(pack: int, number: int) -> CellResult:
    """The result of a simulated cell, a function of its place alone."""
    cell = Cell("model", "tokenizer", "data", "down_proj@4", pack + 1, number + 1, TrainConfig(), "float32")
    loss = 1.0 / (1 + pack + number)
    return CellResult(cell, "finished", 1, 100, 2.0, loss, 2.0 - loss, 1.0, 1.0, number + 1, 1, 1)


def run_simulated(spec: str, root: str) -> None:
    """As `memlaw.sweep.pack.run_pack`, without the training; recorded cells are acknowledged in `acks`."""
    given = json.loads(spec)
    journal = Journal(root)
    for number in range(given["cells"]):
        made = result(given["pack"], number)
        if not journal.holds(made.cell.key):
            time.sleep(given["seconds"] / given["cells"])
            journal.publish(made)
            acknowledge(Path(root), made.cell.key)


def acknowledge(root: Path, key: str) -> None:
    """Note, in one write, that a cell was recorded."""
    descriptor = os.open(root.with_suffix(".acks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{key}\n".encode())
    os.close(descriptor)


def run_all(engine: Engine, wanted: list[str], root: Path) -> Iterator[float]:
    """Run the packs on an engine, again if their worker is lost, and yield the time of each outcome."""
    waiting = deque(wanted)
    for outcome in engine.run(partial(run_simulated, root=str(root)), waiting, Resources()):
        if outcome.error is not None:
            waiting.append(outcome.spec)
        yield time.monotonic()


def cells_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "cells").glob("[!.]*.json")}
