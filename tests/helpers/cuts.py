"""Work interrupted or delayed at each of its system calls: kills, failing disks, racing writers."""

from __future__ import annotations

import errno
import io
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

CALLS = [(os, name) for name in ("open", "fsync", "link", "replace", "rename", "mkdir", "rmdir", "unlink", "stat")]

CALLS += [(io, "open")]  # pathlib reads through it


@contextmanager
def intercepted(before: Callable[[str], None], *, links: bool = True) -> Iterator[None]:
    """Run `before(name)` before every call in CALLS; without `links`, hard links fail."""

    def no_link(*_args: Any, **_options: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def wrap(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            before(name)
            return work(*args, **options)

        return call

    with ExitStack() as stack:
        for module, name in CALLS:
            work = no_link if name == "link" and not links else getattr(module, name)
            stack.enter_context(mock.patch.object(module, name, wrap(name, work)))
        yield


class Cut:
    """Strikes once, at the call of this number, counted from 0."""

    def __init__(self, number: int, blow: Callable[[], None]) -> None:
        self.number, self.blow, self.calls = number, blow, 0

    def __call__(self, _name: str) -> None:
        self.calls += 1
        if self.calls == self.number + 1:
            self.blow()

    @property
    def struck(self) -> bool:
        return self.calls > self.number


def fails(code: int) -> Callable[[], None]:
    def blow() -> None:
        raise OSError(code, os.strerror(code))

    return blow


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(number: int, program: str, *arguments: Any, links: bool = True) -> bool:
    """Run Python code in its own process, killed at a call of its last line; False if it finished first."""
    before, _, last = program.strip().rpartition("\n")
    struck = f"with cuts.intercepted(cuts.Cut({number}, cuts.die), links={links}):"
    code = f"from helpers import cuts; import sys, pathlib\n{before}\n{struck}\n    {last}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=env)
    assert ended.returncode in (0, -signal.SIGKILL)
    return ended.returncode != 0


class Killed(BaseException):
    """Raised in a killed writer at its next call and every later one, so that it cleans up nothing."""


class Interleaving:
    """Several pieces of work, each held before every call in CALLS until its turn. `on_return` gets the number and the
    result of each that ends; a killed one returns nothing."""

    def __init__(self, works: list[Callable[[], Any]], *, on_return: Callable[[int, Any], None]) -> None:
        self.works, self.on_return = works, on_return
        self.turns = [threading.Semaphore(0) for _ in works]
        self.dead = [False] * len(works)
        self.running = set(range(len(works)))
        self.news: queue.Queue[tuple[int, bool, Any]] = queue.Queue()
        self.numbers: dict[int, int] = {}

    def run(self, schedule: Iterable[tuple[int, int, bool]], *, links: bool) -> None:
        """Turns of (which work, number of calls, whether it is then killed); the rest finishes at the end."""
        with intercepted(self._wait, links=links):
            threads = [threading.Thread(target=self._work, args=(number,)) for number in range(len(self.works))]
            for number, thread in enumerate(threads):
                thread.start()
                self.numbers[thread.ident or 0] = number
            for number, calls, kill in schedule:
                for call in range(calls):
                    if number in self.running:
                        self._step(number, kill and call == calls - 1)
            while self.running:
                self._step(max(self.running), False)
            for thread in threads:
                thread.join()

    def _step(self, number: int, kill: bool) -> None:
        self.dead[number] |= kill
        self.turns[number].release()
        who, ended, result = self.news.get(timeout=60)
        assert who == number
        if ended:
            self.running.discard(number)
            if not self.dead[number]:
                self.on_return(number, result)

    def _wait(self, _name: str) -> None:
        number = self.numbers.get(threading.get_ident())
        if number is not None and not self.dead[number]:
            self.news.put((number, False, None))
            self.turns[number].acquire()
        if number is not None and self.dead[number]:
            raise Killed

    def _work(self, number: int) -> None:
        self.turns[number].acquire()
        result: Any = None
        try:
            result = self.works[number]()
        except Killed:
            pass
        except BaseException as error:  # the waiting test must see any error
            result = error
        self.news.put((number, True, result))
