"""The forms of the law: a growth (`growth.py`), or a growth under a soft ceiling; slopes and inverse of each.

paper     dL = C s^alpha l^-beta + b                          the published form, arXiv 2605.30260
power     dL = C s^alpha l^-beta
log       dL = a + k (ln s - q ln l)
bounded   dL = L (1 + (u/L)^-n)^(-1/n), u as in paper         close to u if u << L = L_init(l), close to L if u >> L
memory    dL = L - L' + L' (1 + (u/L')^-n)^(-1/n), u as in power, L' = L_init'(l)

In the memory form L - L' replaces b: the nats that need no memory of the text. `Curve` computes the second term only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from memlaw.law.growth import Array, Bounds, Growth, Logarithm, Power, PowerOffset

Form = Literal["paper", "power", "log", "bounded", "memory"]

BEND = (0.3, 60.0)
"""Bounds of n. At the upper one the curve is u with a sharp corner at L."""

# Bound of |ln n| for searches without bounds: beyond it the curve no longer changes.
_FURTHEST = 7.0

# Values of n from which the search starts.
_FIRST_BENDS = (1.0, 2.0, 4.0, 8.0, 16.0)

# For a start, dL is capped at this share of L_init, because no finite u gives L_init itself.
_BELOW_CEILING = 0.98


def soft_bound(u: Array, ceiling: Array, bend: float) -> tuple[Array, Array, Array]:
    """dL [m] = L (1 + (u/L)^-n)^(-1/n), and its slopes in u and in ln n; dL = u where u <= 0.

    The same as min(u, L) (1 + min(u/L, L/u)^n)^(-1/n): never above L, never above u. At u = 0 value and slope are
    continuous.
    """
    log_share = np.log(np.maximum(u, np.finfo(float).tiny) / ceiling)
    log_sum = np.logaddexp(0, bend * log_share)
    lost = np.exp(-np.log1p(np.exp(-bend * np.abs(log_share))) / bend)
    value = np.where(u > 0, np.minimum(u, ceiling) * lost, u)
    slope = np.where(u > 0, np.exp(-(1 + 1 / bend) * log_sum), 1.0)
    slope_bend = np.where(u > 0, value * (log_sum / bend - np.exp(bend * log_share - log_sum) * log_share), 0.0)
    return value, slope, slope_bend


def invert_soft_bound(delta: Array, ceiling: Array, bend: float | Array) -> Array:
    """The u with soft_bound(u) = `delta`; infinite if delta >= ceiling."""
    share = np.maximum(delta / ceiling, 0.0)
    with np.errstate(divide="ignore", over="ignore"):  # for a very soft bend u overflows to infinity, as it should
        missing = -np.expm1(bend * np.log(share))
        grown = delta * np.maximum(missing, 0.0) ** (-1 / np.asarray(bend))
    return np.where(delta > 0, grown, delta)


@dataclass(frozen=True)
class Curve:
    """One form of the law. `theta` holds the growth's coordinates, then ln n if bounded."""

    growth: Growth
    formula: str
    """In plain text, for people."""
    bounded: bool = False
    """L_init is the upper bound. Saturated cells can be fitted, and every cell needs its L_init."""
    memoryless: bool = False
    """dL counts from L_init' instead of L_init. Every cell needs its L_init'."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.growth.names, "n") if self.bounded else self.growth.names

    @property
    def positive(self) -> frozenset[str]:
        """Parameters whose coordinate is their logarithm."""
        return self.growth.positive | {"n"}

    def parameters(self, theta: Array) -> Array:
        """The parameters themselves, [..., p]; infinite where the exponential overflows."""
        with np.errstate(over="ignore", under="ignore"):
            return np.where([name in self.positive for name in self.names], np.exp(theta), theta)

    def is_finite(self, theta: Array) -> bool:
        """Whether no parameter overflows or underflows."""
        value = self.parameters(theta)
        positive = np.array([name in self.positive for name in self.names])
        return bool(np.all(np.isfinite(value)) and np.all(value[positive] > 0))

    def value(self, theta: Array, x: Array, y: Array, loss_init: Array) -> tuple[Array, Array]:
        """dL [m] in nats and its slopes [m, p] in theta, at ln size x and ln length y."""
        return self._under_ceiling(*self.growth.value(theta, x, y), theta, loss_init)

    def size_for(
        self, theta: Array, length: float, delta: float | Array, loss_init: float, extra: float | Array = 0.0
    ) -> Array:
        """Smallest size whose dL at `length` is `delta`: inverse of `value` in size, for each theta [..., p].

        `extra` nats are added to the u that gives `delta`. 0 if no adapter is needed, infinite if no size is enough.
        """
        u = np.asarray(delta, dtype=float)
        if self.bounded:
            u = invert_soft_bound(u, np.asarray(loss_init, dtype=float), np.exp(theta[..., -1]))
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self.growth.log_size(theta, float(np.log(length)), u + extra)))

    @property
    def bounds(self) -> Bounds:
        bend = {"n": (float(np.log(BEND[0])), float(np.log(BEND[1])))}
        return self.growth.bounds | bend if self.bounded else self.growth.bounds

    def starts(self, x: Array, y: Array, delta: Array, weight: Array, loss_init: Array) -> Iterator[Array]:
        """Starting points phi for the search.

        A bounded form tries several n: it inverts the bound, and weights each cell by the slope of the bound there.
        """
        for bend in _FIRST_BENDS if self.bounded else (None,):
            u, slope_weight = delta, weight
            if bend is not None:
                u = invert_soft_bound(np.minimum(delta, _BELOW_CEILING * loss_init), loss_init, bend)
                slope_weight = weight * soft_bound(u, loss_init, bend)[1]
            start = self.growth.start(x, y, u, slope_weight)
            if start is not None:
                yield start if bend is None else np.append(start, np.log(bend))

    def search_value(self, phi: Array, x: Array, y: Array, loss_init: Array) -> tuple[Array, Array]:
        """`value` in the coordinates phi of the search, with slopes in phi."""
        return self._under_ceiling(*self.growth.search_value(phi, x, y), phi, loss_init)

    def theta(self, phi: Array) -> Array:
        """Coordinates of the search converted to theta."""
        return np.append(self.growth.theta(phi[:-1]), phi[-1]) if self.bounded else self.growth.theta(phi)

    def shifted(self, theta: Array, x: float, y: float) -> Array:
        """theta of the same curve in other units: x is added to every ln size and y to every ln length."""
        if self.bounded:
            return np.append(self.growth.shifted(theta[:-1], x, y), theta[-1])
        return self.growth.shifted(theta, x, y)

    def _under_ceiling(self, u: Array, slopes: Array, coordinates: Array, loss_init: Array) -> tuple[Array, Array]:
        if not self.bounded:
            return u, slopes
        bend = float(np.exp(np.clip(coordinates[-1], -_FURTHEST, _FURTHEST)))
        value, slope, slope_bend = soft_bound(u, loss_init, bend)
        return value, np.column_stack([slopes * slope[:, None], slope_bend])


FORMS: dict[Form, Curve] = {
    "paper": Curve(PowerOffset(), "C r^alpha l^-beta + b"),
    "power": Curve(Power(), "C r^alpha l^-beta"),
    "log": Curve(Logarithm(), "a + k (ln r - q ln l)"),
    "bounded": Curve(PowerOffset(), "L (1 + (u/L)^-n)^(-1/n), u = C r^alpha l^-beta + b", bounded=True),
    "memory": Curve(
        Power(), "L - L' + L' (1 + (u/L')^-n)^(-1/n), u = C r^alpha l^-beta", bounded=True, memoryless=True
    ),
}
