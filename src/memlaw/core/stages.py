"""What takes long before the first step of a training, told to whoever shows it.

A preparation is reached through many functions that have no other use for a callback. So it tells of its progress here,
and nothing happens unless a listener was set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
"""listener(stage, done, total): how much of a stage is done, from 0 to total."""

_listener: ContextVar[Listener | None] = ContextVar("stages", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside, `listener` is called with every stage's progress."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell(stage: str, done: int, total: int) -> None:
    """Say that `done` of `total` parts of a stage are done; `stage` says in a few words what is computed."""
    listener = _listener.get()
    if listener is not None:
        listener(stage, done, total)
