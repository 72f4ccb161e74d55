"""Rows 30 to 36 and 42 of the fault matrix: disk, signal, clock and version faults lose or mix up no recorded row."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from helpers.faulty import CELLS, probed, rows
from helpers.signals import PHASES, probe_with_signal
from memlaw.core import cells
from memlaw.core.cells import CellResult
from memlaw.core.errors import JournalError
from memlaw.sweep.journal import Journal
from memlaw.sweep.scheduler import ProbeProgress
from memlaw.training.result import StackProgress


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert probed(out).finished == CELLS
    return out


def assert_same(out: Path, undisturbed: Path) -> None:
    """After a rerun, the probe equals an undisturbed one: no row lost, duplicated or changed, no file damaged."""
    assert probed(out).finished == CELLS
    assert rows(out) == rows(undisturbed)
    assert (out / "results.parquet").read_bytes() == (undisturbed / "results.parquet").read_bytes()
    assert not list(out.glob("quarantine/*"))


def failing_disk(monkeypatch: pytest.MonkeyPatch, call: str, code: int, *, after: int) -> None:
    """From its `after`-th use on, os.`call` fails with this error code."""
    real, uses = getattr(os, call), iter(range(10**6))

    def use(*arguments: Any, **named: Any) -> Any:
        if next(uses) >= after:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, use)


def assert_row_absent_then_retried(out: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, **fault: Any) -> None:
    acknowledged: list[str] = []

    def note(event: ProbeProgress) -> None:
        if isinstance(event.news, CellResult):
            acknowledged.append(f"{event.news.cell.key}.json")

    with monkeypatch.context() as patch:
        failing_disk(patch, **fault)
        with pytest.raises(JournalError, match=os.strerror(fault["code"])):
            probed(out, on_progress=note)
    assert 0 < len(acknowledged) < CELLS
    assert set(acknowledged) <= rows(out).keys()
    assert rows(out).items() <= rows(undisturbed).items()
    assert_same(out, undisturbed)


@pytest.mark.parametrize(("call", "after"), [("fsync", 11), ("link", 3)])
def test_30_disk_full(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    fault = {"call": call, "code": errno.ENOSPC, "after": after}
    assert_row_absent_then_retried(tmp_path / "out", undisturbed, monkeypatch, **fault)


@pytest.mark.parametrize(("call", "after"), [("fsync", 11), ("link", 3)])
def test_31_io_error(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int) -> None:
    fault = {"call": call, "code": errno.EIO, "after": after}
    assert_row_absent_then_retried(tmp_path / "out", undisturbed, monkeypatch, **fault)


FORKSERVER = multiprocessing.get_context("forkserver")

FORKSERVER.set_forkserver_preload(
    ["memlaw.training.stack", "memlaw.diagnosis.measure", "memlaw.sweep.probe", "helpers.faulty"]
)


def ended_by(number: int, out: Path, phase: str) -> int | None:
    """The exit code of a process that gets the signal in this phase."""
    process = FORKSERVER.Process(target=probe_with_signal, args=(out, number, phase))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("phase", PHASES)
def test_32_ctrl_c(tmp_path: Path, undisturbed: Path, phase: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        probe_with_signal(tmp_path / "out", signal.SIGINT, phase)
    assert_same(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("phase", PHASES)
def test_33_sigterm(tmp_path: Path, undisturbed: Path, phase: str) -> None:
    """As Ctrl-C: it ends by an exception after the table of finished cells is written."""
    assert ended_by(signal.SIGTERM, tmp_path / "out", phase) == 1
    assert (tmp_path / "out" / "results.parquet").exists()
    assert_same(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("phase", PHASES)
def test_34_sigkill(tmp_path: Path, undisturbed: Path, phase: str) -> None:
    assert ended_by(signal.SIGKILL, tmp_path / "out", phase) == -signal.SIGKILL
    assert_same(tmp_path / "out", undisturbed)


def test_35_two_runs_in_one_directory(tmp_path: Path, undisturbed: Path) -> None:
    """Two runs of one probe share a directory; another probe is refused and leaves no trace."""
    out, others = tmp_path / "out", iter([lambda: probed(out)])

    def join(event: ProbeProgress) -> None:
        if event.pack == 1 and isinstance(event.news, StackProgress):
            next(others, lambda: None)()

    probed(out, on_progress=join)
    assert_same(out, undisturbed)
    with pytest.raises(JournalError, match="belongs to another run, which differs in seeds"):
        probed(out, seeds=[7])
    assert_same(out, undisturbed)


def falling(start: float) -> Iterator[float]:
    while True:
        start -= 3600.0
        yield start


def test_36_clock_running_backwards(tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = falling(time.time())
    monkeypatch.setattr(time, "time", lambda: next(hours))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * next(hours)))
    with pytest.raises(KeyboardInterrupt):
        probe_with_signal(tmp_path / "out", signal.SIGINT, "in the last pack")
    assert_same(tmp_path / "out", undisturbed)


def as_if_updated(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "code":
        algorithm = cells.ALGORITHM_VERSION + 1
        monkeypatch.setattr(cells.Cell.__init__, "__defaults__", (algorithm, "", ""))
    else:
        monkeypatch.setattr(torch, "__version__", TorchVersion("99.0.0"))


@pytest.mark.parametrize(("what", "named"), [("code", "algorithm"), ("library", "libraries")])
def test_42_code_or_library_changed_in_mid_sweep(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, what: str, named: str
) -> None:
    """Other code or libraries must not finish a sweep in its directory; they need a new one."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        probe_with_signal(out, signal.SIGINT, "between two packs")
    old = rows(out)
    with monkeypatch.context() as update:
        as_if_updated(update, what)
        with pytest.raises(JournalError, match=f"belongs to another run, which differs in {named}"):
            probed(out)
        assert probed(tmp_path / "new").finished == CELLS
    assert rows(out) == old
    assert Journal(tmp_path / "new").spec().identity != Journal(out).spec().identity
    assert_same(out, undisturbed)
