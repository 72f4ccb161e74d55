"""Reading what a server returned: a value of the kind that its documentation says, or a ServerError."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from memlaw.core.errors import ServerError

T = TypeVar("T")

IMPOSSIBLE = 9999.0
"""Nats that stand for p = 0: servers say -9999, or the smallest number they have."""

_ROUNDING = 1e-3
"""By how many nats a log-probability may be above 0."""


def entry(reply: Any, name: str | int, kind: type[T]) -> T:
    """`reply[name]`, which must be there and of this kind."""
    try:
        value = reply[name]
    except (KeyError, IndexError, TypeError):
        raise _unlike(name, kind) from None
    return checked(value, name, kind)


def optional(reply: Any, name: str, kind: type[T]) -> T | None:
    """`reply[name]`; None if it is not there, null, or of another kind."""
    value = reply.get(name) if isinstance(reply, dict) else None
    return value if isinstance(value, kind) and not isinstance(value, bool) else None


def checked(value: Any, name: str | int, kind: type[T]) -> T:
    """`value`, which must be of this kind; a whole number is also a float, and True is no number."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = _as_float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _unlike(name, kind)
    return value


def log_probability(value: Any) -> float:
    """A log-probability in nats, from -IMPOSSIBLE to 0."""
    number = checked(value, "logprob", float)
    if math.isnan(number) or number > _ROUNDING:
        raise ServerError("The server gave a log-probability that is none (NaN, or above 0), so nothing can be judged.")
    return min(0.0, max(number, -IMPOSSIBLE))


def token_ids(values: Any, name: str) -> tuple[int, ...]:
    """A list of token ids."""
    return tuple(checked(value, name, int) for value in checked(values, name, list))


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _unlike(name: str | int, kind: type) -> ServerError:
    where = f"{name!r}" if isinstance(name, str) else f"entry {name}"
    return ServerError(
        f"The server's answer has no {where} of type {kind.__name__} where its documentation says so. Perhaps it is a "
        "server of another kind: choose one with --dialect."
    )
