"""What least squares takes for the error of a cell: the scale T on which measured and predicted dL are subtracted.

absolute     T(dL) = dL         one scatter in nats for all cells
relative     T(dL) = ln dL      one scatter in percent for all cells
replicates   T(dL) = dL         each cell's own scatter, as its replicates show it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memlaw.law.growth import Array

Residuals = Literal["absolute", "relative", "replicates"]

Flags = NDArray[np.bool_]

_LEAST = 1e-3
"""Nats under which ln dL goes on as a straight line: a law may predict less than nothing while it is being searched."""


@dataclass(frozen=True)
class Scale:
    """T, its inverse and its slope: functions of (dL or T(dL), L_init), in nats, element by element."""

    of: Callable[[Array, Array], Array]
    back: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]
    defined: Callable[[Array, Array], Flags]
    """Which measured dL have a place on the scale."""
    refusal: str = ""
    """What to say of those that have none."""
    nats: bool = True
    """Whether it counts nats, so that one scatter holds at every dL."""
    weighted: bool = False
    """Whether each cell is weighed by the inverse variance of its own replicates' mean."""


def _log(delta: Array, _: Array) -> Array:
    return np.where(delta > _LEAST, np.log(np.maximum(delta, _LEAST)), np.log(_LEAST) + delta / _LEAST - 1)


def _exp(value: Array, _: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(value))


def _log_slope(delta: Array, _: Array) -> Array:
    return 1 / np.maximum(delta, _LEAST)


def _same(delta: Array, _: Array) -> Array:
    return delta


def _one(delta: Array, _: Array) -> Array:
    return np.ones_like(delta)


def _all(delta: Array, _: Array) -> Flags:
    return np.ones(delta.shape, dtype=bool)


def _gained(delta: Array, _: Array) -> Flags:
    return delta > 0


SCALES: dict[Residuals, Scale] = {
    "absolute": Scale(_same, _same, _one, _all),
    "relative": Scale(
        _log, _exp, _log_slope, _gained,
        "dL is not above 0 in {count} of the cells ({axis} {size:g}, length {length:g} is the first), so its logarithm "
        "does not exist, which relative residuals need. Fit absolute residuals, or find out why training made those "
        "worse.",
        nats=False,
    ),
    "replicates": Scale(_same, _same, _one, _all, weighted=True),
}  # fmt: skip
