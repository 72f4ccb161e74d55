from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helpers import tiny
from memlaw.core.cells import Cell
from memlaw.core.config import TrainConfig
from memlaw.core.facts import Fact, MemorySet
from memlaw.model.base import Base
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import ProbeRun

SECRETS = tuple(f"#{7919 * number % 10_000:04d}" for number in range(1, 9))

FACTS = MemorySet(
    tuple(Fact(f"key {number}:", secret, f"f{number}") for number, secret in enumerate(SECRETS)),
    eos=False,
    source="codes",
)

GRID: dict[str, Any] = {"ranks": [1, 3], "lengths": [10, 20], "methods": ["sft", "ot"], "steps": 6}


def on_one_thread() -> Base:
    """The base in every process of these tests: bits are compared, and sums depend on the number of threads."""
    torch.set_num_threads(1)
    return tiny.base()


def cells_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "cells").iterdir()}


def assert_same(out: Path, other: Path) -> None:
    """The same cells and the same table, bit for bit, and an empty quarantine."""
    assert cells_of(out) == cells_of(other)
    assert (out / "results.parquet").read_bytes() == (other / "results.parquet").read_bytes()
    assert not list(out.glob("quarantine/*"))


def a_cell(rank: int, length: int, method: Any = "sft", seed: int = 0) -> Cell:
    train = TrainConfig(method=method, seed=seed)
    return Cell("m", "t", "d", "down_proj@2", rank, length, train, "float32")


def _die_at(out: str, call: str | None, count: int) -> None:
    """Run the probe of GRID and die by SIGKILL at the `count`-th call of os.`call` or, without it, progress event."""
    left = [count]

    def die(then: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return then(*args, **kwargs)

        return counted

    if call is not None:
        setattr(os, call, die(getattr(os, call)))
    on_progress = die(lambda event: None) if call is None else None
    probe(on_one_thread(), FACTS, ProbeConfig(**GRID), out, ProbeRun(on_progress=on_progress))
