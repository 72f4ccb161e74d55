"""Who runs the packs of a probe: this process, a fresh process for each, or the workers of a Ray cluster.

An engine only schedules. It calls one function on one specification after another, in any order and perhaps more than
once, and carries no result: what the function finds it writes itself, into the journal, where the first writer wins.
At-least-once execution and first-writer-wins together give every result exactly once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from memlaw.core.errors import ConfigError, MemlawError

Spec = TypeVar("Spec")


class WorkerDiedError(MemlawError):
    """A worker was gone before it had finished."""


@dataclass(frozen=True)
class Resources:
    """What one pack takes. Raises ConfigError."""

    cpus: int = 1
    """Threads it computes on, and CPUs that Ray reserves for it."""
    gpus: float = 0.0
    """GPUs that Ray reserves for it; with 0.5, two packs share one."""

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ConfigError(f"A pack cannot compute on {self.cpus} CPUs: choose a whole number from 1 up.")
        if not (0 <= self.gpus <= 1 or (self.gpus > 1 and float(self.gpus).is_integer())):
            raise ConfigError(f"A pack cannot take {self.gpus} GPUs: choose a share from 0 to 1, or a whole number.")


@dataclass(frozen=True)
class Outcome(Generic[Spec]):
    """What became of a specification."""

    spec: Spec
    error: Exception | None
    """What the function raised, or a WorkerDiedError; None where it returned."""


Outcomes: TypeAlias = Generator[Outcome[Spec]]


class Engine(Protocol):
    """Calls a function on specifications."""

    in_process: bool
    """Whether it does so here; if not, the function and its specifications are pickled."""
    parallel: bool
    """Whether it works on several at a time."""

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], resources: Resources, /) -> Outcomes[Spec]:
        """Call `fn` on every one of `specs`, taken from the left, and yield the outcomes as they come.

        The caller may add to `specs`, or reorder them, at every outcome. Closing the iterator ends the workers.
        """
        ...


class Inline:
    """One after the other in this process."""

    in_process, parallel = True, False

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], _resources: Resources, /) -> Outcomes[Spec]:
        while specs:
            spec, error = specs.popleft(), None
            try:
                fn(spec)
            except Exception as raised:
                error = raised
            yield Outcome(spec, error)
