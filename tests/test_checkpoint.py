"""A training that is interrupted goes on to the same last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from memlaw import durable
from memlaw.adapter import parse_placement
from memlaw.errors import ConfigError
from memlaw.records import TrainConfig
from memlaw.training import Checkpoint, StackProgress, Trained, train_stack

FACTS = tiny.facts([(5, 4), (3, 7), (6, 2), (4, 4), (4, 5)])
PLAIN = TrainConfig(steps=14, learning_rate=2e-2, batch_size=2)
RUNS = {
    "sft": [(1, PLAIN), (4, replace(PLAIN, steps=6, seed=1)), (2, replace(PLAIN, weight_decay=0.1))],
    "ot": [(3, replace(PLAIN, method="ot", until="recalled", learning_rate=5e-2)), (4, replace(PLAIN, method="ot"))],
    "sw": [(3, replace(PLAIN, method="sw")), (4, replace(PLAIN, method="sw", seed=7)), (2, PLAIN)],
    "curriculum": [(3, replace(PLAIN, method="curriculum")), (2, replace(PLAIN, rule="fallback", method="ot"))],
    "dropout": [(3, replace(PLAIN, dropout=0.1)), (2, replace(PLAIN, dropout=0.5, seed=3))],
    "diverging": [(2, replace(PLAIN, learning_rate=1e38, clip=0.0)), (2, PLAIN)],
}


class InterruptedTrainingError(Exception):
    pass


def stop_at(step: int) -> Callable[[StackProgress], None]:
    def on_step(progress: StackProgress) -> None:
        if progress.step == step:
            raise InterruptedTrainingError

    return on_step


def train(name: str, path: Path | None = None, *, stop: int | None = None, **changes: object) -> list[Trained]:
    base = tiny.base(**changes)
    placement = parse_placement("down_proj@1+3", base.model)
    checkpoint = None if path is None else Checkpoint(path, minutes=0)
    on_step = None if stop is None else stop_at(stop)
    return train_stack(base, FACTS, placement, RUNS[name], checkpoint=checkpoint, on_step=on_step)


def assert_same(found: list[Trained], expected: list[Trained]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("rank", "config", "status", "steps", "loss_init", "loss_final", "recalled", "message"):
            assert getattr(ours, name) == getattr(theirs, name)
        for a, b in zip(ours.stack.tensors, theirs.stack.tensors, strict=True):
            assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interrupted_training_goes_on_to_the_same_last_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    for stop in (4, 9, 12):
        with pytest.raises(InterruptedTrainingError):
            train(name, path, stop=stop, dtype=dtype)
    assert path.exists()
    assert_same(train(name, path, dtype=dtype), train(name, dtype=dtype))


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=10)
    base = tiny.base()
    seen: list[int] = []
    train_stack(
        base, FACTS, parse_placement("down_proj@1+3", base.model), RUNS["sft"],
        checkpoint=Checkpoint(path), on_step=lambda progress: seen.append(progress.step),
    )  # fmt: skip
    assert seen == [10, 11, 12, 13, 14]


def test_nothing_is_saved_before_it_is_due(tmp_path: Path) -> None:
    base = tiny.base()
    path = tmp_path / "checkpoint.safetensors"
    train_stack(base, FACTS, parse_placement(None, base.model), RUNS["sft"], checkpoint=Checkpoint(path, minutes=60))
    assert not path.exists()


@pytest.mark.parametrize("place", [0, 9, 200, -3])
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(place: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=9)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"is damaged .*: training starts again from its beginning"):
        found = train("sft", path)
    assert_same(found, train("sft"))


def test_a_truncated_checkpoint_is_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=9)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is damaged"):
        train("sft", path)


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=9)
    with pytest.raises(ConfigError, match="is the checkpoint of another training"):
        train("ot", path)
    with pytest.raises(ConfigError, match="is the checkpoint of another training"):
        train("sft", path, seed=5)


def test_a_failed_write_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=6)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write(path, b"something else")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


PROGRAM = """
import sys, test_checkpoint as t
from pathlib import Path
t.train(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "sw"])
def test_a_killed_process_leaves_a_checkpoint_that_goes_on(name: str, tmp_path: Path) -> None:
    """SIGKILL as soon as there is a checkpoint, again and again, each time somewhere else in a step."""
    path = tmp_path / "checkpoint.safetensors"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for delay in (0.0, 0.01, 0.03):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, name, str(path)], env=env)
        before = path.stat().st_mtime_ns if path.exists() else 0
        while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_same(train(name, path), train(name))
