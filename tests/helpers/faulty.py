"""What the fault matrix shares: files to read, refusals before any training, a small probe and its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest

import memlaw
from helpers import tiny
from memlaw.core.errors import MemlawError
from memlaw.core.facts import Fact, MemorySet
from memlaw.model.base import Base
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.journal import Journal
from memlaw.sweep.probe import ProbeSummary, probe
from memlaw.sweep.scheduler import ProbeRun

SECRET = "hunter2-7919"
"""A target that no message may repeat."""

FACTS = MemorySet(
    tuple(Fact(f"key {number}:", f"#{7919 * number % 10_000:04d}", f"f{number}") for number in range(1, 9)),
    eos=False,
    source="codes",
)

GRID: dict[str, Any] = {"ranks": [1, 3], "lengths": [10, 20], "steps": 6}
"""Two packs of two cells."""

CELLS = 4


def record(prompt: str = "The key:", target: str = SECRET, **more: Any) -> str:
    return json.dumps({"prompt": prompt, "completion": target, **more}) + "\n"


def written(directory: Path, content: str | bytes, name: str = "facts.jsonl") -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@contextmanager
def untrained() -> Iterator[None]:
    """Nothing may train in here."""
    with patch("memlaw.training.stack.Engine", side_effect=AssertionError("a training began")):
        yield


def refused(
    facts: MemorySet | Path, *, base: Base | None = None, rank: int = 1, length: int = 8, placement: str | None = None
) -> str:
    """The one sentence in which `memlaw.train` and `memlaw.probe` refuse, before any training and without a target."""
    base = base or tiny.base()
    given = (base.model, base.tokenizer, facts)
    with TemporaryDirectory() as directory, untrained():
        out = Path(directory, "out")
        with pytest.raises(MemlawError) as by_train:
            memlaw.train(*given, rank=rank, placement=placement, out=out)
        with pytest.raises(MemlawError) as by_probe:
            memlaw.probe(*given, out, ranks=[rank], lengths=[length], placement=placement)
        assert not out.exists()
    assert str(by_train.value) == str(by_probe.value)
    assert SECRET not in str(by_train.value)
    return " ".join(str(by_train.value).split())


def probed(out: Path, *, base: Base | None = None, facts: MemorySet = FACTS, **changes: Any) -> ProbeSummary:
    """A probe of GRID; `on_progress` and `execution` are handed on."""
    handed = {name: changes.pop(name) for name in ("on_progress", "execution") if name in changes}
    return probe(base or tiny.base(), facts, ProbeConfig(**GRID | changes), out, ProbeRun(**handed))


def rows(out: Path) -> dict[str, bytes]:
    """The recorded cells, bit for bit."""
    return {path.name: path.read_bytes() for path in (out / "cells").iterdir()}


def stored_warnings(out: Path) -> list[str]:
    """What a probe keeps of the warnings that its model and its facts gave rise to."""
    kept: list[str] = Journal(out).spec().about["warnings"]
    return kept
