"""Progress bars on stderr, with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from memlaw.training.result import StackProgress

if TYPE_CHECKING:
    from memlaw.sweep.scheduler import ProbeProgress


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
def training_bar(name: str) -> Iterator[Callable[[StackProgress], None]]:
    """A bar over the steps of one stack: mean loss, ordered share, stubborn tokens, time left."""
    with _bar() as bar:
        task = bar.add_task(name, total=1, state="")

        def show(progress: StackProgress) -> None:
            bar.update(task, completed=progress.step, total=progress.steps, state=_state(progress))

        yield show


@contextmanager
def probe_bar() -> Iterator[Callable[[ProbeProgress], None]]:
    """A bar over the cells of a probe, and one over the steps of the pack being trained."""
    with _bar() as bar:
        cells = bar.add_task("cells", total=1, state="")
        steps: dict[int, TaskID] = {}

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

        yield show
