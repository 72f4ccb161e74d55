"""Progress on stderr, with the time left: bars on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from memlaw.cli.output import note
from memlaw.core.stages import listening
from memlaw.training.result import StackProgress

if TYPE_CHECKING:
    from memlaw.sweep.scheduler import ProbeProgress


EVERY = 60.0
"""Seconds between two lines of a log; the first comes after as many, so that short commands stay silent."""


SILENT = 5.0
"""Seconds of preparation before the first line about it."""


class _Log:
    """A line now and then where there is no terminal to draw on: a batch system, `nohup`, a notebook's `!memlaw`."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted, self._latest = wanted, time.monotonic()
        self._stage = ""

    def show(self, progress: StackProgress, prefix: str = "", of_what: str = "") -> None:
        now = time.monotonic()
        if not self.wanted or now - self._latest < EVERY:
            return
        self._latest = now
        left = progress.seconds / max(1, progress.step) * (progress.steps - progress.step)
        note(
            f"{prefix}step {progress.step:,} of {progress.steps:,}: loss {progress.loss:.3f}, "
            f"{progress.ordered:.1%} ordered, at most {left:,.0f} s left{of_what}"
        )

    def prepare(self, stage: str, done: int, total: int, prefix: str = "") -> None:
        """A line for each stage of a preparation that is not over at once, and one a minute while it lasts."""
        now = time.monotonic()
        if not self.wanted or done == total or now - self._latest < (EVERY if stage == self._stage else SILENT):
            return
        self._latest, self._stage = now, stage
        note(f"{prefix}before the first step: {done:,} of {total:,} {stage}")


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # bars would fill a log file
    )


def _state(progress: StackProgress) -> str:
    return f"loss {progress.loss:.3f}  ordered {progress.ordered:.0%}  stubborn {progress.stubborn}"


@contextmanager
def judging_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar over the tokens whose reach is computed; shown only once there are some."""
    with _bar() as bar:
        tasks: list[TaskID] = []

        def show(done: int, total: int) -> None:
            if not tasks:
                tasks.append(bar.add_task("tokens judged by reach", total=total, state=""))
            bar.update(tasks[0], completed=done, total=total)

        yield show


@contextmanager
def asking_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar over the questions that a server has answered."""
    with _bar() as bar:
        task = bar.add_task("answers", total=None, state="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def training_bar(name: str) -> Iterator[Callable[[StackProgress], None]]:
    """What a training prepares, then the steps of one stack: mean loss, ordered share, stubborn tokens, time left."""
    with _bar() as bar:
        task, log = bar.add_task(name, total=1, state=""), _Log(wanted=bar.disable)

        def show(progress: StackProgress) -> None:
            log.show(progress, f"{name}, ")
            bar.update(task, completed=progress.step, total=progress.steps, state=_state(progress))

        def prepare(stage: str, done: int, total: int) -> None:
            log.prepare(stage, done, total, f"{name}, ")
            bar.update(task, completed=done, total=total, state=stage)

        with listening(prepare):
            yield show


@contextmanager
def probe_bar() -> Iterator[Callable[[ProbeProgress], None]]:
    """The cells of a probe, and the steps of the pack being trained."""
    with _bar() as bar:
        cells = bar.add_task("cells", total=1, state="")
        steps: dict[int, TaskID] = {}
        log = _Log(wanted=bar.disable)

        def show(progress: ProbeProgress) -> None:
            failed = f"{progress.failed} failed" if progress.failed else ""
            bar.update(cells, completed=progress.recorded, total=progress.cells, state=failed)
            if progress.pack not in steps:
                for done in steps.values():
                    bar.remove_task(done)
                steps.clear()
                steps[progress.pack] = bar.add_task(f"pack {progress.pack}/{progress.packs}", total=1, state="")
            news = progress.news
            if isinstance(news, StackProgress):
                bar.update(steps[progress.pack], completed=news.step, total=news.steps, state=_state(news))
                where = f"{progress.recorded:,} of {progress.cells:,} cells, pack {progress.pack} of {progress.packs}, "
                log.show(news, where, " in this pack")

        yield show
