"""Shared by the chaos of the journal: simulated cells, and a file system without hard links."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import TrainConfig
from memlaw.sweep.journal import ProbeSpec

SPEC = ProbeSpec(identity={"ranks": [1, 2]}, packs=(("a", "b"),), about={"model": "none"})


def result(rank: int, message: str = "", status: Any = "finished") -> CellResult:
    """A result of the cell with this rank; a different message makes a different result of the same cell."""
    cell = Cell("model", "tokenizer", "data", "down_proj@2", rank, 10, TrainConfig(steps=100), "float32")
    return CellResult(
        cell, status, 100, 64 * rank, 4.0, 0.5, 3.5, acc_token=0.9, acc_em=0.5, ordered=9, certified=1, records=2,
        message=message,
    )  # fmt: skip


def no_link(*_paths: Any, **_options: Any) -> None:
    """The answer of FAT to `os.link`."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def without_links() -> None:
    """From now on, hard links fail in this process."""
    os.link = no_link


def report(case: str, **numbers: Any) -> None:
    print(json.dumps({"benchmark": "chaos", "case": case, **numbers}, allow_nan=False), flush=True)
