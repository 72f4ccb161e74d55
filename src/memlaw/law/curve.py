"""The mathematics of the law: two curves, their slopes, their inverse, and least squares that starts from any data.

    u  = C s^alpha l^-beta + b          s: size (rank or parameters), l: length; the paper's form is dL = u
    dL = L (1 + (u/L)^-n)^(-1/n)        the bounded form: u where it is small, L where it is large

Parameters travel as coordinates theta = (ln C, alpha, beta, b) or (ln C, alpha, beta, b, ln n): all of them free to
take any value, and their errors closer to normal than those of C and n themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Form = Literal["paper", "bounded"]

PARAMETERS: dict[Form, tuple[str, ...]] = {
    "paper": ("C", "alpha", "beta", "b"),
    "bounded": ("C", "alpha", "beta", "b", "n"),
}
POSITIVE = frozenset({"C", "n"})
"""Parameters whose coordinate is their logarithm."""

_ALPHA = (1e-3, 6.0)
"""Under the lower bound the power is a logarithm to a part in a thousand, and C and b run to infinity."""
_RATIO = (0.0, 20.0)
"""Of beta / alpha: how fast the size must grow with the length to keep dL."""
BEND = (0.3, 60.0)
"""Of n. At the upper bound the curve is u up to a corner at L."""
_FIRST_BENDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_FIRST_ALPHAS = np.geomspace(0.02, 4, 22)
_FIRST_RATIOS = np.append(0, np.geomspace(0.05, 10, 22))
_NEAR_BOUND = 1e-3


def power_offset(theta: Array, size: Array, length: Array) -> tuple[Array, Array]:
    """u [m] = C size^alpha length^-beta + b, and its slopes [m, 4] in ln C, alpha, beta and b."""
    log_size, log_length = np.log(size), np.log(length)
    power = np.exp(theta[0] + theta[1] * log_size - theta[2] * log_length)
    slopes = np.stack([power, power * log_size, -power * log_length, np.ones_like(power)], axis=-1)
    return power + theta[3], slopes


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


def unbound(delta: Array, ceiling: Array, bend: float | Array) -> Array:
    """The u whose soft bound is `delta`: inverse of `soft_bound`. Infinite from the ceiling up."""
    share = np.maximum(delta / ceiling, 0.0)
    with np.errstate(divide="ignore", over="ignore"):  # a very soft bend asks for more than a float holds: infinite
        missing = -np.expm1(bend * np.log(share))
        grown = delta * np.maximum(missing, 0.0) ** (-1 / np.asarray(bend))
    return np.where(delta > 0, grown, delta)


def curve(theta: Array, size: Array, length: Array, ceiling: Array | None) -> tuple[Array, Array]:
    """dL [m] in nats and its slopes [m, p] in theta; `ceiling` is L_init at each length, None for the paper's form."""
    u, slopes = power_offset(theta, size, length)
    if ceiling is None:
        return u, slopes
    value, slope, slope_bend = soft_bound(u, ceiling, float(np.exp(theta[4])))
    return value, np.column_stack([slopes * slope[:, None], slope_bend])


def size_for(
    theta: Array, length: float, delta: float | Array, ceiling: float | None, extra: float | Array = 0.0
) -> Array:
    """Smallest size whose predicted dL at `length` is `delta`: inverse of `curve` in size, for each theta [..., p].

    `extra` nats are added to the u that this asks for. 0 where the offset alone gives it, infinite where no size does.
    """
    u = np.asarray(delta) if ceiling is None else unbound(np.asarray(delta), np.asarray(ceiling), np.exp(theta[..., 4]))
    power = u + extra - theta[..., 3]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.exp((np.log(power) - theta[..., 0] + theta[..., 2] * np.log(length)) / theta[..., 1])
    return np.where(power <= 0, 0.0, np.where(theta[..., 1] > 0, size, np.inf))


# --- least squares ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solution:
    """Where least squares ended: theta, and the parameters that a bound stopped (alpha, beta, n)."""

    theta: Array
    stopped: tuple[str, ...]


def least_squares_fit(size: Array, length: Array, delta: Array, ceiling: Array | None) -> Solution | None:
    """theta of the least sum of (delta - dL)^2; None where dL does not grow with size for any exponents.

    Searched in coordinates in which the limit alpha -> 0, a logarithm, is an ordinary point and not infinitely far:
    u = a + k (s^alpha l^-beta - 1) / alpha around the mean cell, with q = beta / alpha. Given exponents and n, a and k
    follow from linear least squares, so a grid of exponents finds the basin whatever the data.
    """
    mean_x, mean_y = np.log(size).mean(), np.log(length).mean()
    x, y = np.log(size) - mean_x, np.log(length) - mean_y
    starts = (
        [_best_on_grid(x, y, delta, np.ones_like(delta))]
        if ceiling is None
        else [_bent_start(x, y, delta, ceiling, bend) for bend in _FIRST_BENDS]
    )
    ends = [_polish(start, x, y, delta, ceiling) for start in starts if start is not None]
    if not ends:
        return None
    _, best = min(ends, key=lambda end: end[0])
    log_k, alpha, ratio, a = best[:4]
    log_power = log_k - np.log(alpha)
    theta = [log_power - alpha * (mean_x - ratio * mean_y), alpha, ratio * alpha, a - np.exp(log_power), *best[4:]]
    return Solution(np.array(theta), _stopped(best))


def refit_scale(
    theta: Array, size: Array, length: Array, delta: Array, ceiling: Array | None, *, offset: bool
) -> Array:
    """theta with ln C, and b too if `offset`, moved to the least squares of new cells; the exponents stay."""
    from scipy.optimize import least_squares

    free = [0, 3] if offset else [0]

    def at(values: Array) -> Array:
        moved = theta.copy()
        moved[free] = values
        return moved

    def residual(values: Array) -> Array:
        return curve(at(values), size, length, ceiling)[0] - delta

    def slopes(values: Array) -> Array:
        return curve(at(values), size, length, ceiling)[1][:, free]

    return at(least_squares(residual, theta[free], jac=slopes, x_scale="jac").x)


def covariance_of(slopes: Array, variance: float) -> Array | None:
    """variance (J'J)^-1 for the slopes J [m, p] of a curve; None where the cells leave a direction undetermined."""
    scale = np.linalg.norm(slopes, axis=0)
    if not np.all(scale > 0):
        return None
    _, singular, axes = np.linalg.svd(slopes / scale, full_matrices=False)
    if singular[-1] < 1e-10 * singular[0]:
        return None
    root = axes.T / singular / scale[:, None]
    return np.asarray(variance * root @ root.T)


def _bent_start(x: Array, y: Array, delta: Array, ceiling: Array, bend: float) -> Array | None:
    """Undo the bound with a guessed n, weigh each cell by what the bound left of its slope, and solve the power law."""
    u = unbound(np.minimum(delta, 0.98 * ceiling), ceiling, bend)
    _, slope, _ = soft_bound(u, ceiling, bend)
    start = _best_on_grid(x, y, u, slope)
    return None if start is None else np.append(start, np.log(bend))


def _best_on_grid(x: Array, y: Array, u: Array, weight: Array) -> Array | None:
    """(ln k, alpha, q, a) of the least weighted squares over a grid of (alpha, q); None if k > 0 nowhere."""
    alpha, ratio = (grid.ravel()[:, None] for grid in np.meshgrid(_FIRST_ALPHAS, _FIRST_RATIOS))
    z = np.expm1(alpha * (x - ratio * y)) / alpha
    squared = weight**2 / (weight**2).sum()
    mean_z, mean_u = z @ squared, u @ squared
    spread = (z - mean_z[:, None]) ** 2 @ squared
    shared = ((z - mean_z[:, None]) * (u - mean_u)) @ squared
    gain = np.where((shared > 0) & (spread > 0), shared**2 / np.where(spread > 0, spread, 1), 0.0)
    best = int(gain.argmax())
    if gain[best] == 0:
        return None
    k = shared[best] / spread[best]
    return np.array([np.log(k), alpha[best, 0], ratio[best, 0], mean_u - k * mean_z[best]])


def _polish(start: Array, x: Array, y: Array, delta: Array, ceiling: Array | None) -> tuple[float, Array]:
    """Half the sum of squares, and (ln k, alpha, q, a[, ln n]), at the minimum downhill of `start`."""
    from scipy.optimize import least_squares

    def residual(phi: Array) -> Array:
        return _centred(phi, x, y, ceiling)[0] - delta

    def slopes(phi: Array) -> Array:
        return _centred(phi, x, y, ceiling)[1]

    low = np.array([-np.inf, _ALPHA[0], _RATIO[0], -np.inf, np.log(BEND[0])])[: len(start)]
    high = np.array([np.inf, _ALPHA[1], _RATIO[1], np.inf, np.log(BEND[1])])[: len(start)]
    with np.errstate(over="ignore"):  # a step too far is taken back by the solver
        end = least_squares(
            residual,
            np.clip(start, low + 1e-9, high - 1e-9),
            jac=slopes,
            bounds=(low, high),
            x_scale="jac",
            ftol=1e-14,
            xtol=1e-14,
            gtol=1e-14,
        )
    return float(end.cost), end.x


def _centred(phi: Array, x: Array, y: Array, ceiling: Array | None) -> tuple[Array, Array]:
    """dL [m] and its slopes [m, p] in phi = (ln k, alpha, q, a[, ln n]), x and y being centred logarithms."""
    k, alpha, ratio, a = np.exp(phi[0]), phi[1], phi[2], phi[3]
    v = x - ratio * y
    grown = np.exp(alpha * v)
    z = np.expm1(alpha * v) / alpha
    u = a + k * z
    slopes = np.stack([k * z, k * (v * grown - z) / alpha, -k * y * grown, np.ones_like(u)], axis=-1)
    if ceiling is None:
        return u, slopes
    value, slope, slope_bend = soft_bound(u, ceiling, float(np.exp(phi[4])))
    return value, np.column_stack([slopes * slope[:, None], slope_bend])


def _stopped(phi: Array) -> tuple[str, ...]:
    """Names of the parameters that ended at a bound of the search."""
    log_bend = (np.log(BEND[0]), np.log(BEND[1]))
    bounds = zip(("alpha", "beta", "n"), (phi[1], phi[2], *phi[4:]), (_ALPHA, _RATIO, log_bend), strict=False)
    return tuple(
        name
        for name, value, (low, high) in bounds
        if value - low < _NEAR_BOUND * (high - low) or high - value < _NEAR_BOUND * (high - low)
    )
