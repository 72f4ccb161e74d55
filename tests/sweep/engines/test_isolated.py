from __future__ import annotations

import os
import signal
import threading

import pytest

from helpers import tiny, workers
from helpers.engines import killed_driver_leaves_nobody, outcomes
from helpers.probes import FACTS, GRID, assert_same
from memlaw.core.errors import ConfigError, JournalError
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.engines.base import WorkerDiedError
from memlaw.sweep.engines.isolated import Isolated
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import ProbeProgress, ProbeRun


def test_each_new_process_reports_how_it_ended(tmp_path):
    written = [f"write:{tmp_path / name}" for name in ("a", "b")]
    errors = outcomes(Isolated(), *written, "exit:3", "kill:9", "kill:11", "raise:journal", "raise:picky")
    assert [errors[spec] for spec in written] == [None, None]
    assert len({(tmp_path / name).read_text() for name in ("a", "b")} | {str(os.getpid())}) == 3
    deaths = {spec: str(error) for spec, error in errors.items() if isinstance(error, WorkerDiedError)}
    assert deaths == {
        "exit:3": "The process of the pack exited early, with code 3.",
        "kill:9": "The process of the pack was ended by SIGKILL, probably because memory ran out.",
        "kill:11": "The process of the pack was ended by SIGSEGV, a crash in compiled code.",
    }
    assert isinstance(errors["raise:journal"], JournalError)
    assert (type(errors["raise:picky"]), str(errors["raise:picky"])) == (RuntimeError, "PickyError")


def test_an_interrupt_ends_the_process_of_the_pack(tmp_path):
    path = tmp_path / "pid"
    threading.Thread(target=lambda: (workers.appears(path), os.kill(os.getpid(), signal.SIGINT))).start()
    with pytest.raises(KeyboardInterrupt):
        outcomes(Isolated(), f"hang:{path}")
    assert workers.gone(int(path.read_text()))


def test_a_killed_driver_leaves_no_process_behind(tmp_path):
    killed_driver_leaves_nobody("isolated", tmp_path / "pid")


def test_a_model_that_is_only_in_memory_trains_inline_alone(tmp_path):
    events: list[ProbeProgress] = []
    with pytest.raises(ConfigError) as refused:
        probe(
            tiny.base(),
            FACTS,
            ProbeConfig(**GRID),
            tmp_path / "out",
            ProbeRun(engine=Isolated(), on_progress=events.append),
        )
    assert str(refused.value) == (
        "The model tiny-qwen3 exists only in the memory of this process, so another process cannot load it. "
        "Save it and its tokenizer with `save_pretrained` and load them from there, or train inline."
    )
    assert events == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_probe_in_new_processes_gives_the_same_bits(base, quiet, tmp_path):
    assert probe(base, FACTS, ProbeConfig(**GRID), tmp_path / "out", ProbeRun(engine=Isolated())).failed == 0
    assert_same(tmp_path / "out", quiet)
