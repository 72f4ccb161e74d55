from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections import deque
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from helpers import workers
from helpers.engines import killed_driver_leaves_nobody, outcomes
from helpers.probes import FACTS, GRID, cells_of
from memlaw.core.errors import ConfigError, JournalError
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.engines.base import Resources
from memlaw.sweep.engines.ray import OnRay
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import ProbeRun


@pytest.mark.slow
def test_a_probe_on_ray_gives_the_same_bits_despite_kills(base, quiet, tmp_path):
    killed: list[int] = []
    ended = threading.Event()
    killer = threading.Thread(target=kill_one, args=("ray::pack", killed, ended))
    killer.start()
    try:
        summary = probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=OnRay(cpus=2)))
    finally:
        ended.set()
        killer.join()
    assert len(killed) == 1
    assert (summary.finished, summary.failed) == (8, 0)
    assert cells_of(tmp_path / "out") == cells_of(quiet)
    assert not sys.modules["ray"].is_initialized()


def kill_one(name: str, killed: list[int], ended: threading.Event) -> None:
    """Kill the first of our processes under a name that shows up."""
    while not killed and not ended.wait(0.02):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] == [name]:
                    process.kill()
                    killed.append(process.pid)
                    break


@pytest.mark.slow
def test_a_cluster_of_this_machine_asks_for_a_token_and_listens_on_the_loopback_alone(tmp_path, monkeypatch):
    ray = OnRay(cpus=1).run(workers.work, deque([f"write:{tmp_path / 'a'}"]), Resources())
    terminated = signal.getsignal(signal.SIGTERM)
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch, closing(ray):
        patch.setattr(tempfile, "tempdir", folder)
        next(ray)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        sockets = [socket for process in processes for socket in process.net_connections("inet")]
        listening = {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        assert listening
        assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert len(list(Path(folder).iterdir())) == 1
        assert signal.getsignal(signal.SIGTERM) == terminated
        ray.close()
        assert not list(Path(folder).iterdir())
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_deaths_and_errors_of_ray_workers_are_reported(tmp_path):
    errors = outcomes(OnRay(cpus=2), "exit:3", "kill:9", "raise:journal", "raise:key", f"write:{tmp_path / 'a'}")
    for spec in ("exit:3", "kill:9"):
        assert str(errors[spec]) == "The worker of the pack was lost (WorkerCrashedError)."
    assert isinstance(errors["raise:journal"], JournalError)
    assert isinstance(errors["raise:key"], KeyError)
    assert (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_killed_driver_takes_its_ray_along(tmp_path):
    with tempfile.TemporaryDirectory() as folder:  # sockets need a short path, and nobody else cleans up after it
        killed_driver_leaves_nobody("ray", tmp_path / "pid", folder)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_refused():
    with pytest.raises(ConfigError, match=r"Cannot connect to a Ray cluster at auto .* RAY_AUTH_TOKEN_PATH"):
        outcomes(OnRay("auto"), "exit:0")


@pytest.mark.slow
def test_a_ray_that_cannot_start_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(ConfigError, match=r"Ray cannot start on this machine \(.*path .*\)\. .* set TMPDIR to a"):
        outcomes(OnRay(cpus=1), "exit:0")
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_asking_for_more_than_any_node_has_warns():
    nothing = OnRay(cpus=1).run(workers.work, deque[str](), Resources(cpus=2))
    with pytest.warns(UserWarning, match="No node of the Ray cluster has the 2 CPUs and 0 GPUs that a pack needs"):
        assert list(nothing) == []
