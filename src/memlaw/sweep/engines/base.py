"""What an engine is: it calls one function on many specifications, in this process or elsewhere.

An engine only schedules. It may call the function in any order and more than once, and returns no results: the function
itself writes them to the journal, where the first writer wins. At-least-once execution and first-writer-wins together
give every result exactly once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from memlaw.core.errors import ConfigError, MemlawError

Spec = TypeVar("Spec")


class WorkerDiedError(MemlawError):
    """A worker ended before it had finished."""


@dataclass(frozen=True)
class Resources:
    """What one pack takes of a machine. Raises ConfigError."""

    cpus: int = 1
    """Number of threads, and of CPUs that Ray reserves."""
    gpus: float = 0.0
    """Number of GPUs that Ray reserves; with 0.5, two packs share one."""

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ConfigError(f"A pack cannot run on {self.cpus} CPUs. Choose a whole number from 1 up.")
        if not (0 <= self.gpus <= 1 or (self.gpus > 1 and float(self.gpus).is_integer())):
            raise ConfigError(f"A pack cannot use {self.gpus} GPUs. Choose a share from 0 to 1, or a whole number.")


@dataclass(frozen=True)
class Outcome(Generic[Spec]):
    """How the call on one specification ended."""

    spec: Spec
    error: Exception | None
    """What the function raised, or a WorkerDiedError; None if it returned."""


Outcomes: TypeAlias = Generator[Outcome[Spec]]


class Engine(Protocol):
    """Calls a function on specifications."""

    in_process: bool
    """Whether it calls in this process; if not, the function and its specifications are pickled."""
    parallel: bool
    """Whether it runs several calls at a time."""

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], resources: Resources, /) -> Outcomes[Spec]:
        """Call `fn` on each of `specs`, taken from the left, and yield outcomes as they arrive.

        The caller may add to or reorder `specs` after each outcome. Closing the iterator ends the workers.
        """
        ...


class Inline:
    """One call after the other, in this process."""

    in_process, parallel = True, False

    def run(self, fn: Callable[[Spec], object], specs: deque[Spec], _resources: Resources, /) -> Outcomes[Spec]:
        while specs:
            spec, error = specs.popleft(), None
            try:
                fn(spec)
            except Exception as raised:
                error = raised
            yield Outcome(spec, error)
