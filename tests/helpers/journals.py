from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import resource
import signal
from pathlib import Path
from typing import Any

from helpers import cuts
from memlaw.core.canonical import canonical_json, digest
from memlaw.core.cells import Cell, CellResult
from memlaw.core.config import TrainConfig
from memlaw.core.errors import JournalError
from memlaw.sweep.journal import Journal, ProbeSpec

SPEC = ProbeSpec(identity={"model": "m", "ranks": [1, 2]}, packs=(("a", "b"), ("c",)), about={"model": "tiny"})

SPAWN = multiprocessing.get_context("spawn")


def a_result(rank: int = 1, *, loss_final: float | None = 0.5, **changes: Any) -> CellResult:
    cell = Cell(
        model="model", tokenizer="tokenizer", data="data", placement="down_proj@2", rank=rank, length=10,
        train=TrainConfig(steps=100), dtype="float32",
    )  # fmt: skip
    delta = None if loss_final is None else 4.0 - loss_final
    measured = CellResult(
        cell=cell, status="finished", steps=100, parameters=64 * rank, loss_init=4.0, loss_final=loss_final,
        delta_loss=delta, acc_token=0.9, acc_em=0.5, ordered=9, certified=1, records=2,
    )  # fmt: skip
    return dataclasses.replace(measured, **changes)


def a_failure(rank: int = 1, message: str = "out of memory") -> CellResult:
    nothing = dict.fromkeys(["loss_init", "acc_token", "acc_em", "ordered", "certified"])
    return a_result(rank, loss_final=None, status="failed", steps=0, message=message, **nothing)


def cell_file(root: Path, result: CellResult) -> Path:
    return root / "cells" / f"{result.cell.key}.json"


def sealed(body: Any) -> str:
    """The format of a journal file, spelled out."""
    return canonical_json({"body": body, "sha256": digest(body)}) + "\n"


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*.tmp"))


def _publish_under_a_file_size_limit(root: str, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Journal(root).publish(a_result(2))
    except JournalError as error:
        raise SystemExit(7 if error.__cause__.errno == errno.EFBIG else 8) from None


def _publish_mine(root: str, links: bool, writer: int, barrier: Any) -> None:
    journal = Journal(root)
    barrier.wait()
    with cuts.intercepted(lambda _name: None, links=links):
        for rank in range(1, 41):
            journal.publish(a_result(rank, message=f"by writer {writer}"))
    raise SystemExit(len(journal.findings))


def _rebuild_over_and_over(root: str, started: Any, stop: Any) -> None:
    journal = Journal(root)
    while not stop.is_set():
        journal.write_table()
        started.set()


def _claim_mine(root: str, number: int, barrier: Any, answers: Any) -> None:
    barrier.wait()
    answers.put(Journal(root).claim(dataclasses.replace(SPEC, about={"run": number})).about)
