"""A fresh process for each pack: one that runs out of memory or crashes takes no other along."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from memlaw.core.errors import ConfigError
from memlaw.sweep.engines.base import Outcome, Outcomes, Resources, Spec, WorkerDiedError

_FRESH = multiprocessing.get_context("spawn")


class Isolated:
    """One after the other, each in a spawned process that loads what it needs.

    A script that uses it keeps its own work under `if __name__ == "__main__":`, as for every spawned process.
    """

    in_process, parallel = False, False

    def __init__(self, minutes: float | None = None) -> None:
        """`minutes` that a pack may take; one that takes longer has failed. Raises ConfigError."""
        if minutes is not None and not 0 < minutes < math.inf:
            raise ConfigError(f"A pack cannot be given {minutes} minutes: choose a number above 0, or no limit.")
        self.minutes = minutes

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], _resources: Resources, /) -> Outcomes[Spec]:
        while specs:
            spec = specs.popleft()
            yield Outcome(spec, _in_fresh_process(fn, spec, self.minutes))


def _in_fresh_process(fn: Callable[[Any], object], spec: Any, minutes: float | None) -> Exception | None:
    """What `fn` raised there, or how the process died."""
    receiver, sender = _FRESH.Pipe(duplex=False)
    process = _FRESH.Process(target=_child, args=(fn, spec, sender), daemon=True)
    process.start()
    sender.close()  # so that the child holds the only other end
    try:
        if not receiver.poll(None if minutes is None else 60 * minutes):
            return WorkerDiedError(f"The process of the pack was stopped at its limit of {minutes:g} minutes.")
        error: Exception | None = receiver.recv()
    except EOFError:
        process.join()
        return WorkerDiedError(_death(process.exitcode or 0))
    finally:  # also on the way out of an interrupt
        process.kill()
        process.join()
        receiver.close()
    return error


def _child(fn: Callable[[Any], object], spec: Any, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent decides
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    error: Exception | None = None
    try:
        fn(spec)
    except Exception as raised:
        error = raised
    try:
        sender.send(copy.copy(error))
    except Exception:  # one that cannot be made again from its arguments does not survive the way
        sender.send(RuntimeError(type(error).__name__))


def _end_with(parent: Any) -> None:
    """A driver that is killed can tell nobody."""
    wait([parent.sentinel])
    os._exit(1)


def _death(exitcode: int) -> str:
    if exitcode >= 0:
        return f"The process of the pack ended with exit code {exitcode} before it was done."
    name = signal.Signals(-exitcode).name
    cause = {"SIGKILL": ", as the kernel does where memory runs out", "SIGSEGV": ", a crash in compiled code"}
    return f"The process of the pack was ended by {name}{cause.get(name, '')}."
