from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from pathlib import Path

from helpers import workers
from memlaw.sweep.engines.base import Engine, Resources

SPAWN = multiprocessing.get_context("spawn")


def outcomes(engine: Engine, *specs: str) -> dict[str, Exception | None]:
    return {outcome.spec: outcome.error for outcome in engine.run(workers.work, deque(specs), Resources())}


def killed_driver_leaves_nobody(engine: str, path: Path, temporary: str | None = None) -> None:
    driver = SPAWN.Process(target=workers.drive, args=(engine, [f"hang:{path}"], temporary))
    driver.start()
    worker = int(workers.appears(path))
    assert driver.pid is not None
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    assert workers.gone(worker)
