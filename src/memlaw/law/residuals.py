"""Residuals of a fit: the scale T on which predicted dL is subtracted from measured dL.

absolute     T(dL) = dL         the same scatter in nats for all cells
relative     T(dL) = ln dL      the same scatter in percent for all cells
replicates   T(dL) = dL         each cell's own scatter, estimated from its replicates
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

# Below this many nats ln dL continues as a straight line, since the search may try laws that predict dL <= 0.
_LEAST = 1e-3


@dataclass(frozen=True)
class Scale:
    """T, its inverse and its derivative: elementwise functions of (dL or T(dL), L_init), in nats."""

    transform: Callable[[Array, Array], Array]
    """T."""
    invert: Callable[[Array, Array], Array]
    """Inverse of T."""
    slope: Callable[[Array, Array], Array]
    """Derivative of T."""
    defined: Callable[[Array, Array], Flags]
    """True for each measured dL whose T exists."""
    refusal: str = ""
    """The sentence about cells whose T does not exist."""
    nats: bool = True
    """T is in nats, so that the same scatter applies at every dL."""
    weighted: bool = False
    """Cells are weighted by the inverse variance of the mean of their replicates."""


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
        "dL is not positive in {count} of the cells (first: {axis} {size:g}, length {length:g}), and relative "
        "residuals need its logarithm. Fit absolute residuals, or find out why training did not lower the loss of "
        "these cells.",
        nats=False,
    ),
    "replicates": Scale(_same, _same, _one, _all, weighted=True),
}  # fmt: skip
