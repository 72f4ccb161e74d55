"""An interrupted training resumes to the same last bit."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from helpers import cuts, tiny
from helpers.interrupted import FACTS, PLAIN, RUNS, InterruptedTrainingError, stop_at, train
from helpers.paths import FIXTURES
from helpers.runs import runs_at
from memlaw.adapter.on_model import placement_on
from memlaw.core import files
from memlaw.core.config import Optimizer, TrainConfig
from memlaw.core.errors import ConfigError
from memlaw.core.facts import EncodedFact
from memlaw.model.base import load
from memlaw.sweep.journal import CheckpointStatus, Journal, ProbeSpec, status
from memlaw.training.checkpoint import Checkpoint, identity
from memlaw.training.engine import Engine
from memlaw.training.result import Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

SAME = ("rank", "config", "status", "steps", "tokens_forwarded", "loss_init", "loss_final", "recalled", "message")


def assert_same(found: list[Trained], expected: list[Trained]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for name in SAME:
            assert getattr(ours, name) == getattr(theirs, name)
        for a, b in zip(ours.stack.tensors, theirs.stack.tensors, strict=True):
            assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interrupted_training_resumes_to_the_same_last_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for stop in (4, 9, 12):
        with pytest.raises(InterruptedTrainingError):
            train(name, path, stop=stop, dtype=dtype)
    assert path.exists()
    assert_same(train(name, path, dtype=dtype), train(name, dtype=dtype))


def test_finished_steps_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "checkpoint"
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=10)
    base = tiny.base()
    seen: list[int] = []
    train_stack(
        base, FACTS, runs_at(placement_on("down_proj@1+3", base.model), RUNS["sft"]),
        checkpoint=Checkpoint(path), on_step=lambda progress: seen.append(progress.step),
    )  # fmt: skip
    assert seen == [10, 11, 12, 13, 14]


def test_nothing_is_saved_before_it_is_due(tmp_path: Path) -> None:
    base = tiny.base()
    path = tmp_path / "checkpoint"
    runs = runs_at(placement_on(None, base.model), RUNS["sft"])
    train_stack(base, FACTS, runs, checkpoint=Checkpoint(path, minutes=60))
    assert not path.exists()


def interrupted(path: Path, stop: int) -> None:
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=stop)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_newest_two_are_kept_and_the_newer_counts_whatever_their_times(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 9)
    assert names(path) == ["8", "9"]
    assert names(path / "9") == ["manifest.json", "state.json", "tensors.safetensors"]
    os.utime(path / "8", (2**33, 2**33))
    interrupted(path, 10)
    assert names(path) == ["10", "9"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("place", [0, 9, 60, -3])
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(file: str, place: int, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 9)
    flip(path / "9" / file, place)
    with pytest.warns(UserWarning, match=r"checkpoint/9 is damaged .*: training restarts from the previous checkpoint"):
        found = train("sft", path)
    assert_same(found, train("sft"))


def test_without_an_intact_checkpoint_training_starts_over_and_warns(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 9)
    for number in ("8", "9"):
        flip(path / number / "tensors.safetensors", -3)
    with pytest.warns(UserWarning, match="is damaged") as told:
        found = train("sft", path)
    assert [str(warning.message) for warning in told] == [
        f"The checkpoint {path / '9'} is damaged (tensors.safetensors is not the file that was saved): training "
        "restarts from the previous checkpoint.",
        f"The checkpoint {path / '8'} is damaged (tensors.safetensors is not the file that was saved): training "
        "restarts at the first step.",
    ]
    assert_same(found, train("sft"))


def test_a_damaged_checkpoint_does_not_displace_an_intact_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 9)
    flip(path / "9" / "state.json", 5)
    with pytest.warns(UserWarning, match="is damaged"):
        interrupted(path, 9)
    assert names(path) == ["8", "9"]


def test_a_truncated_or_missing_file_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 9)
    tensors = path / "9" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    (path / "8" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"is damaged") as told:
        train("sft", path)
    assert "(tensors.safetensors is not the file that was saved): training restarts from the previous" in str(told[0])
    assert "(it cannot be read: No such file or directory): training restarts at the first step" in str(told[1])


def test_other_files_are_neither_read_as_checkpoints_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 9)
    (path / "notes").mkdir()
    (path / ".10.0123.tmp").mkdir()
    train("sft", path)
    Checkpoint(path).discard()
    assert names(path) == ["notes"]


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(InterruptedTrainingError):
        train("sft", path, stop=9)
    with pytest.raises(ConfigError, match="is the checkpoint of another training"):
        train("ot", path)
    with pytest.raises(ConfigError, match="is the checkpoint of another training"):
        train("sft", path, seed=5)


@pytest.mark.parametrize(("first", "then"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_state_of_another_optimizer_is_refused(first: Optimizer, then: Optimizer, tmp_path: Path) -> None:
    base = tiny.base()
    path, where = tmp_path / "checkpoint", placement_on(None, base.model)
    runs = {name: [Run(2, where, replace(PLAIN, optimizer=name))] for name in (first, then)}
    with pytest.raises(InterruptedTrainingError):
        train_stack(base, FACTS, runs[first], checkpoint=Checkpoint(path, minutes=0), on_step=stop_at(5))
    with pytest.raises(ConfigError, match=r"is the checkpoint of another training: .* the settings, .* Repeat the"):
        train_stack(base, FACTS, runs[then], checkpoint=Checkpoint(path))
    (resumed,) = train_stack(base, FACTS, runs[first], checkpoint=Checkpoint(path))
    assert_same([resumed], train_stack(base, FACTS, runs[first]))


def test_an_intact_checkpoint_of_another_version_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 9)
    state = json.loads((path / "9" / "state.json").read_text())
    del state["seconds"], state["states"][0]["updates"]
    (path / "9" / "manifest.json").unlink()
    (path / "9" / "state.json").write_text(json.dumps(state))
    files.sign(path / "9")
    with pytest.raises(
        ConfigError, match=r"9 is intact, but .* version of memlaw \(seconds, states\.0\.updates\)\. Resume"
    ):
        train("sft", path)
    assert names(path) == ["8", "9"]


@pytest.mark.parametrize("full", ["fsync", "mkdir"])
def test_a_disk_that_fails_costs_the_checkpoints_and_not_the_training(
    full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    interrupted(path, 6)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, full, fail)
        with pytest.warns(
            UserWarning, match=r"cannot be written \(No space left.*\): training continues without checkpoints"
        ):
            found = train("sft", path)
    assert_same(found, train("sft"))
    assert names(path) == ["5"]
    assert_same(train("sft", path), found)


def test_the_previous_checkpoint_survives_a_failure_of_any_call_of_a_save(tmp_path: Path) -> None:
    saved: list[tuple[Any, Any]] = []

    def keep(_self: Checkpoint, engine: Any, snapshot: Any) -> None:
        saved.append((engine, replace(snapshot, states=list(snapshot.states))))

    with mock.patch.object(Checkpoint, "save", keep):
        interrupted(tmp_path / "unused", 9)
    engine, snapshot = saved[-1]
    for number in itertools.count():
        checkpoint = Checkpoint(tmp_path / str(number))
        for _ in range(2):
            checkpoint.save(engine, snapshot)
        cut = cuts.Cut(number, cuts.fails(errno.EIO))
        with contextlib.suppress(OSError), cuts.intercepted(cut):
            checkpoint.save(engine, snapshot)
        found = checkpoint.load(engine)
        assert found is not None
        assert torch.equal(found.states[0].stack.tensors[0], snapshot.states[0].stack.tensors[0])
        if not cut.struck:
            break
    assert number > 20


def test_the_status_of_a_probe_shows_the_step_of_a_pack_in_training(tmp_path: Path) -> None:
    pack = ("a", "b")
    journal = Journal(tmp_path)
    journal.claim(ProbeSpec(identity={}, packs=(("c",), pack)))
    interrupted(journal.checkpoint(pack), 9)
    assert status(tmp_path).checkpoints == (CheckpointStatus(pack=2, step=8),)


BEFORE_THE_MOVE = FIXTURES / "before_the_move" / "checkpoint"
"""Interrupted at step 8 with torch 2.13 by memlaw 0.1.0, before its modules moved."""


def test_a_checkpoint_of_the_code_before_the_move_is_resumed_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load()
    facts = tuple(
        EncodedFact(f"f{number}", ids, 2)
        for number, ids in enumerate([(5, 9, 14, 3, 77, 31), (6, 9, 21, 40, 8), (7, 9, 65, 12)])
    )
    placement = placement_on("down_proj@0", base.model)
    short = TrainConfig(method="sft", steps=3, learning_rate=2e-2, batch_size=2)
    long = TrainConfig(method="sw", steps=12, learning_rate=2e-2, batch_size=2, seed=7, dropout=0.1)
    runs = [Run(2, placement, short), Run(1, placement, long)]
    expected = train_stack(base, facts, runs)
    path = tmp_path / "checkpoint"
    shutil.copytree(BEFORE_THE_MOVE, path)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    seen: list[int] = []
    resumed = train_stack(base, facts, runs, checkpoint=Checkpoint(path), on_step=lambda p: seen.append(p.step))
    assert seen == [8, 9, 10, 11, 12]
    for ours, theirs in zip(resumed, expected, strict=True):
        assert (ours.run, ours.status, ours.steps) == (theirs.run, theirs.status, theirs.steps)
        assert ours.loss_final == pytest.approx(theirs.loss_final, rel=1e-4)
        for a, b in zip(ours.stack.tensors, theirs.stack.tensors, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)  # another machine may round differently


PROGRAM = """
import sys
from helpers import interrupted as t
from pathlib import Path
t.train(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "sw"])
def test_a_killed_process_leaves_a_checkpoint_to_resume_from(name: str, tmp_path: Path) -> None:
    """SIGKILL soon after a checkpoint appears, several times, each at another place in a step."""
    path = tmp_path / "checkpoint"
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


def going_on(path: Path | None = None, *, stop: int | None = None, seed: int = 0, floor: float = 3.0) -> list[Trained]:
    """A new adapter and one that goes on from another, with a fact that must not come back."""
    base = tiny.base()
    where = placement_on("down_proj@1+3", base.model)
    facts = (*FACTS[:4], replace(FACTS[4], floor=(floor,) * FACTS[4].length))
    config = replace(
        PLAIN, method="ot", schedule="share", until="recalled", anneal=0.25, protect=2.0, learning_rate=5e-2
    )
    (start,) = train_stack(base, FACTS, [Run(2, where, replace(PLAIN, steps=8, seed=seed))])
    runs = [Run(3, where, replace(config, average=2), start=start.stack), Run(2, where, config)]
    on_step = None if stop is None else stop_at(stop)
    return train_stack(
        base, facts, runs, checkpoint=None if path is None else Checkpoint(path, minutes=0), on_step=on_step
    )


def test_a_training_that_goes_on_from_an_adapter_and_forgets_resumes_to_the_same_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for stop in (3, 8, 12):
        with pytest.raises(InterruptedTrainingError):
            going_on(path, stop=stop)
    found, wanted = going_on(path), going_on()
    assert_same(found, wanted)
    assert [one.protection for one in found] == [one.protection for one in wanted]
    assert found[0].loss_init < found[1].loss_init


@pytest.mark.parametrize("changes", [{"seed": 1}, {"floor": 3.5}])
def test_another_adapter_to_go_on_from_or_another_floor_is_another_training(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint"
    with pytest.raises(InterruptedTrainingError):
        going_on(path, stop=5)
    with pytest.raises(ConfigError, match="checkpoint of another training"):
        going_on(path, **changes)


def test_trainings_without_start_and_floors_have_the_name_they_always_had(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    named: list[dict[str, Any]] = []
    monkeypatch.setattr("memlaw.training.checkpoint.digest", lambda values: named.append(values) or "")
    for facts, start in ((FACTS, False), ((replace(FACTS[0], floor=(1.0,) * FACTS[0].length),), True)):
        run = Run(2, placement_on(None, base.model), PLAIN)
        if start:
            run = replace(run, start=Engine(base, facts, [run]).start().stack)
        identity(Engine(base, facts, [run]))
    old = {"model", "dtype", "device", "facts", "sites", "runs", "compiled", "algorithm", "torch"}
    assert [set(values) for values in named] == [old, old | {"floors", "start"}]
