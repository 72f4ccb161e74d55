"""A new process for each pack, so that running out of memory or a crash costs that pack alone."""

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
    """One call after the other, each in a spawned process that loads what it needs.

    A script that uses it needs `if __name__ == "__main__":` around its own work, as with any spawned process.
    """

    in_process, parallel = False, False

    def __init__(self, minutes: float | None = None) -> None:
        """`minutes`: time limit of a pack, after which it has failed. Raises ConfigError."""
        if minutes is not None and not 0 < minutes < math.inf:
            raise ConfigError(f"The time limit of a pack is {minutes} minutes. Choose a number above 0, or no limit.")
        self.minutes = minutes

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], _resources: Resources, /) -> Outcomes[Spec]:
        while specs:
            spec = specs.popleft()
            yield Outcome(spec, _in_fresh_process(fn, spec, self.minutes))


def _in_fresh_process(fn: Callable[[Any], object], spec: Any, minutes: float | None) -> Exception | None:
    """What `fn` raised in the new process, or how the process died."""
    receiver, sender = _FRESH.Pipe(duplex=False)
    process = _FRESH.Process(target=_child, args=(fn, spec, sender), daemon=True)
    process.start()
    sender.close()  # the child holds the only other end now, so its death ends the pipe
    try:
        if not receiver.poll(None if minutes is None else 60 * minutes):
            return WorkerDiedError(f"The process of the pack was stopped at its time limit of {minutes:g} minutes.")
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to every process; the parent decides
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    error: Exception | None = None
    try:
        fn(spec)
    except Exception as raised:
        error = raised
    try:
        sender.send(copy.copy(error))
    except Exception:  # some exceptions cannot be pickled
        sender.send(RuntimeError(type(error).__name__))


def _end_with(parent: Any) -> None:
    """End this process with its parent, which cannot end its workers if it is killed."""
    wait([parent.sentinel])
    os._exit(1)


def _death(exitcode: int) -> str:
    if exitcode >= 0:
        return f"The process of the pack exited early, with code {exitcode}."
    name = signal.Signals(-exitcode).name
    cause = {"SIGKILL": ", probably because memory ran out", "SIGSEGV": ", a crash in compiled code"}
    return f"The process of the pack was ended by {name}{cause.get(name, '')}."
