"""Work for the workers in tests of engines; a separate module, so that a new process loads almost nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from memlaw.core.errors import JournalError


class PickyError(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, text: str, *, needed: int) -> None:
        super().__init__(text)


def work(spec: str) -> None:
    """`write:PATH` writes the process id there; `hang:PATH` does too, and does not return; `exit:3`, `kill:9` and
    `raise:NAME` end as they say."""
    what, _, value = spec.partition(":")
    if what == "write":
        Path(value).write_text(str(os.getpid()))
    elif what == "exit":
        os._exit(int(value))
    elif what == "kill":
        os.kill(os.getpid(), int(value))
    elif what == "raise":
        raise {"journal": JournalError("disk full"), "picky": PickyError("x", needed=1), "key": KeyError("x")}[value]
    elif what == "hang":
        Path(value).write_text(str(os.getpid()))
        time.sleep(600)


def drive(engine: str, specs: list[str], temporary: str | None) -> None:
    """Run `specs` on an engine and wait for them: a driver for the tests to kill."""
    import tempfile
    from collections import deque

    from memlaw.sweep.engines.base import Resources
    from memlaw.sweep.engines.isolated import Isolated
    from memlaw.sweep.engines.ray import OnRay

    tempfile.tempdir = temporary
    chosen = Isolated() if engine == "isolated" else OnRay(cpus=2)
    for _ in chosen.run(work, deque(specs), Resources()):
        pass


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process ends within some seconds."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def appears(path: Path, seconds: float = 60.0) -> str:
    """The text of a file once it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path.name} never appeared")
