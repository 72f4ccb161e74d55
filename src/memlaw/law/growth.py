"""How the law grows without a ceiling: three curves u(size, length), their slopes, inverses, and where a search starts.

    PowerOffset   u = C s^alpha l^-beta + b         s: size (rank or parameters), l: length
    Power         u = C s^alpha l^-beta
    Logarithm     u = a + k (ln s - q ln l)         the limit of the first as alpha -> 0, with q = beta / alpha

theta holds the parameters, the positive ones as logarithms: then every value is allowed, and the errors are closer to
normal. Sizes and lengths enter as logarithms: x [m] = ln s, y [m] = ln l.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Bounds = dict[str, tuple[float, float]]

LEAST_ALPHA = 1e-3
"""Below this alpha the power law equals a logarithm to one part in a thousand, and C and b diverge."""

_ANY = (-np.inf, np.inf)
_ALPHA = (LEAST_ALPHA, 6.0)

# Bounds of q = beta / alpha: the size must grow as l^q to keep dL.
_RATIO = (0.0, 20.0)

# Largest exponent that is evaluated: e^69 = 1e30.
_FAR = 69.0

_ALPHAS, _RATIOS = (
    grid.ravel()[:, None]
    for grid in np.meshgrid(np.geomspace(0.02, 4, 22), np.append(0, np.geomspace(0.05, 10, 22)))
)  # fmt: skip
"""Grid of exponents alpha and beta / alpha from which the search starts, [506, 1] each."""


class Growth(ABC):
    """One curve u(x, y). The search may use other coordinates phi than theta if they suit least squares better."""

    names: ClassVar[tuple[str, ...]]
    positive: ClassVar[frozenset[str]]
    """Parameters whose coordinate is their logarithm."""
    bounds: ClassVar[Bounds]
    """Bounds of phi, in order, named by the parameter that each coordinate determines."""
    moved: ClassVar[tuple[str, ...]]
    """Parameters refitted to another kind of data: the first for a single cell, the second too if cells suffice."""

    @abstractmethod
    def value(self, theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """u [m] in nats, and its slopes [m, p] in theta."""

    @abstractmethod
    def log_size(self, theta: Array, y: Array | float, u: Array) -> Array:
        """ln of the smallest size with this u, for each theta [..., p].

        -inf if no adapter is needed, inf if no size is enough.
        """

    @abstractmethod
    def shifted(self, theta: Array, x: float, y: float) -> Array:
        """theta of the same curve in other units: x is added to every ln s and y to every ln l. Linear in x and y."""

    @abstractmethod
    def start(self, x: Array, y: Array, u: Array, weight: Array) -> Array | None:
        """phi near the weighted least squares, for centred x and y; None if u does not grow with size."""

    def search_value(self, phi: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """`value` in the coordinates phi of the search, with slopes in phi."""
        return self.value(phi, x, y)

    def theta(self, phi: Array) -> Array:
        """Coordinates of the search converted to theta."""
        return phi


class PowerOffset(Growth):
    """u = C s^alpha l^-beta + b, searched as u = a + k (s^alpha l^-beta - 1) / alpha with phi = (ln k, alpha, q, a).

    In these coordinates the limit alpha -> 0, a logarithm, is an ordinary point; in theta it is infinitely far away.
    """

    names = ("C", "alpha", "beta", "b")
    positive = frozenset({"C"})
    bounds: ClassVar[Bounds] = {"C": _ANY, "alpha": _ALPHA, "beta": _RATIO, "b": _ANY}
    moved = ("C", "b")

    def value(self, theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
        power, slopes = _power(theta, x, y)
        return power + theta[3], np.column_stack([slopes, np.ones_like(power)])

    def log_size(self, theta: Array, y: Array | float, u: Array) -> Array:
        return _log_size(theta, y, u - theta[..., 3])

    def shifted(self, theta: Array, x: float, y: float) -> Array:
        return _power_shifted(theta, x, y)

    def start(self, x: Array, y: Array, u: Array, weight: Array) -> Array | None:
        z = np.expm1(np.minimum(_ALPHAS * (x - _RATIOS * y), _FAR)) / _ALPHAS
        squared = weight**2 / (weight**2).sum()
        mean_z, mean_u = z @ squared, u @ squared
        fitted = _best_multiple(z - mean_z[:, None], u - mean_u, squared)
        if fitted is None:
            return None
        best, k = fitted
        return np.array([np.log(k), _ALPHAS[best, 0], _RATIOS[best, 0], mean_u - k * mean_z[best]])

    def search_value(self, phi: Array, x: Array, y: Array) -> tuple[Array, Array]:
        k, alpha, ratio, a = _exp(phi[0]), phi[1], phi[2], phi[3]
        v = x - ratio * y
        grown, z = _exp(alpha * v), np.expm1(np.minimum(alpha * v, _FAR)) / alpha
        slopes = [k * z, k * (v * grown - z) / alpha, -k * y * grown, np.ones_like(z)]
        return a + k * z, np.stack(slopes, axis=-1)

    def theta(self, phi: Array) -> Array:
        log_power = phi[0] - np.log(phi[1])
        return np.array([log_power, phi[1], phi[1] * phi[2], phi[3] - np.exp(log_power)])


class Power(Growth):
    """u = C s^alpha l^-beta: no offset, all of dL is memory."""

    names = ("C", "alpha", "beta")
    positive = frozenset({"C"})
    bounds: ClassVar[Bounds] = {"C": _ANY, "alpha": _ALPHA, "beta": _RATIO}
    moved = ("C",)

    def value(self, theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
        return _power(theta, x, y)

    def log_size(self, theta: Array, y: Array | float, u: Array) -> Array:
        return _log_size(theta, y, u)

    def shifted(self, theta: Array, x: float, y: float) -> Array:
        return _power_shifted(theta, x, y)

    def start(self, x: Array, y: Array, u: Array, weight: Array) -> Array | None:
        fitted = _best_multiple(_exp(_ALPHAS * (x - _RATIOS * y)), u, weight**2)
        if fitted is None:
            return None
        best, scale = fitted
        return np.array([np.log(scale), _ALPHAS[best, 0], _ALPHAS[best, 0] * _RATIOS[best, 0]])


class Logarithm(Growth):
    """u = a + k (ln s - q ln l): each doubling of the size adds the same number of nats."""

    names = ("k", "q", "a")
    positive = frozenset({"k"})
    bounds: ClassVar[Bounds] = {"k": _ANY, "q": _RATIO, "a": _ANY}
    moved = ("a", "k")

    def value(self, theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
        k, v = _exp(theta[0]), x - theta[1] * y
        return theta[2] + k * v, np.stack([k * v, -k * y, np.ones_like(v)], axis=-1)

    def log_size(self, theta: Array, y: Array | float, u: Array) -> Array:
        return np.asarray((u - theta[..., 2]) * np.exp(-theta[..., 0]) + theta[..., 1] * y)

    def shifted(self, theta: Array, x: float, y: float) -> Array:
        moved = theta.copy()
        moved[2] += np.exp(theta[0]) * (x - theta[1] * y)
        return moved

    def start(self, x: Array, y: Array, u: Array, weight: Array) -> Array | None:
        columns = np.stack([x, -y, np.ones_like(x)], axis=-1) * weight[:, None]
        k, k_q, a = np.linalg.lstsq(columns, u * weight, rcond=None)[0]
        return np.array([np.log(k), np.clip(k_q / k, *_RATIO), a]) if k > 0 else None


def _exp(value: Array | float) -> Array:
    """e^value, at most e^69 = 1e30, so that a search that steps too far still sees a finite number."""
    return np.asarray(np.exp(np.minimum(value, _FAR)))


def _power(theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """C s^alpha l^-beta [m] and its slopes [m, 3] in ln C, alpha and beta."""
    power = _exp(theta[0] + theta[1] * x - theta[2] * y)
    return power, np.stack([power, power * x, -power * y], axis=-1)


def _log_size(theta: Array, y: Array | float, power: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        x = (np.log(power) - theta[..., 0] + theta[..., 2] * y) / theta[..., 1]
    return np.where(power <= 0, -np.inf, np.where(theta[..., 1] > 0, x, np.inf))


def _power_shifted(theta: Array, x: float, y: float) -> Array:
    moved = theta.copy()
    moved[0] += theta[1] * x - theta[2] * y
    return moved


def _best_multiple(z: Array, u: Array, squared_weight: Array) -> tuple[int, float] | None:
    """Index of the curve z [grid, m] that fits k z = u [m] best, and its factor k > 0; None if no factor is above 0."""
    spread, shared = z**2 @ squared_weight, z @ (squared_weight * u)
    gain = np.where((shared > 0) & (spread > 0), shared**2 / np.where(spread > 0, spread, 1), 0.0)
    best = int(gain.argmax())
    return None if gain[best] == 0 else (best, float(shared[best] / spread[best]))
