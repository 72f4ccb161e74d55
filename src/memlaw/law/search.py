"""Nonlinear least squares that finds its own starting points, and the covariance at the minimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memlaw.law.curve import Curve
from memlaw.law.growth import Array
from memlaw.law.points import Cells
from memlaw.law.residuals import Scale

# A parameter this close to a bound, as a share of the bound's range, counts as stopped by it.
_NEAR_BOUND = 1e-3

# Stands for a residual that overflowed.
_FAR = 1e100

# Weight of the pooled variance of replicates against a cell's own, in degrees of freedom.
_PRIOR_FREEDOM = 4.0


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise sum_i weight_i^2 (target_i - T(dL(theta, x_i, y_i)))^2 over cells i."""

    curve: Curve
    scale: Scale
    x: Array
    """[m], ln size."""
    y: Array
    """[m], ln length."""
    runs: tuple[Array, ...]
    """T of each run's dL, cell by cell."""
    target: Array
    """[m], means of `runs`."""
    weight: Array
    """[m], 1 for a single run with the pooled scatter."""
    loss_init: Array
    """[m], nats; NaN where unknown."""

    @property
    def within(self) -> float:
        """Pooled variance of runs around the mean of their cell, on the scale T; 0 without replicates."""
        return pooled_variance(self.runs)

    def predicted(self, theta: Array) -> tuple[Array, Array]:
        """T of the law's dL at each cell [m], and its slopes [m, p] in theta."""
        return self._on_scale(*self.curve.value(theta, self.x, self.y, self.loss_init))

    def residual(self, theta: Array) -> Array:
        """[m], weighted."""
        return np.asarray(self.weight * (self.predicted(theta)[0] - self.target))

    def slopes(self, theta: Array) -> Array:
        """[m, p], of `residual`."""
        return self.weight[:, None] * self.predicted(theta)[1]

    def _on_scale(self, delta: Array, slopes: Array) -> tuple[Array, Array]:
        slope = self.scale.slope(delta, self.loss_init)
        return self.scale.transform(delta, self.loss_init), slopes * slope[:, None]

    def search_residual(self, phi: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """`residual` and `slopes` in the coordinates phi of the search, for centred x and y."""
        value, slopes = self._on_scale(*self.curve.search_value(phi, x, y, self.loss_init))
        return self.weight * (value - self.target), self.weight[:, None] * slopes


@dataclass(frozen=True)
class Solution:
    """The minimum: theta, and the names of parameters that ended at a bound."""

    theta: Array
    stopped: tuple[str, ...]


def problem_of(cells: Cells, curve: Curve, scale: Scale) -> Problem:
    """Each cell is the mean of its runs on the scale T, weighted equally or by the variance of its replicates.

    That variance is shrunk towards the pooled one, which counts as four more degrees of freedom, because the variance
    of two or three runs is itself mostly chance.
    """
    runs = tuple(
        scale.transform(delta, np.full_like(delta, start))
        for delta, start in zip(cells.runs, cells.loss_init, strict=True)
    )
    return Problem(
        curve,
        scale,
        np.log(cells.size),
        np.log(cells.length),
        runs,
        target=np.array([values.mean() for values in runs]),
        weight=_weights(runs) if scale.weighted else np.ones(len(runs)),
        loss_init=cells.loss_init,
    )


def pooled_variance(runs: Sequence[Array]) -> float:
    """Variance of replicates around the mean of their own cell; 0 without replicates."""
    freedom = sum(len(values) - 1 for values in runs)
    return float(sum(((values - values.mean()) ** 2).sum() for values in runs) / freedom) if freedom else 0.0


def _weights(runs: Sequence[Array]) -> Array:
    pooled = pooled_variance(runs)
    if pooled == 0:
        return np.ones(len(runs))
    count = np.array([len(values) for values in runs])
    squares = np.array([((values - values.mean()) ** 2).sum() for values in runs])
    variance = (squares + _PRIOR_FREEDOM * pooled) / (count - 1 + _PRIOR_FREEDOM)
    return np.asarray(np.sqrt(pooled / variance * count))


def solve(problem: Problem) -> Solution | None:
    """The best minimum over all starting points; None if dL does not grow with size."""
    mean_x, mean_y = problem.x.mean(), problem.y.mean()
    x, y = problem.x - mean_x, problem.y - mean_y
    delta = problem.scale.invert(problem.target, problem.loss_init)
    weight = problem.weight * problem.scale.slope(delta, problem.loss_init)
    starts = problem.curve.starts(x, y, delta, weight, problem.loss_init)
    ends = [_polish(problem, start, x, y) for start in starts]
    if not ends:
        return None
    _, phi = min(ends, key=lambda end: end[0])
    theta = problem.curve.shifted(problem.curve.theta(phi), -mean_x, -mean_y)
    return Solution(theta, _names_at_bound(problem.curve, phi))


def refine(problem: Problem, theta: Array, free: Sequence[int]) -> tuple[float, Array]:
    """The sum of squares and theta at the local minimum near `theta`, varying only the coordinates `free`."""
    from scipy.optimize import least_squares

    free = list(free)
    if not free:
        return float((problem.residual(theta) ** 2).sum()), theta

    def at(values: Array) -> Array:
        moved = theta.copy()
        moved[free] = values
        return moved

    def residual(values: Array) -> Array:
        return np.nan_to_num(problem.residual(at(values)), nan=_FAR)

    def slopes(values: Array) -> Array:
        return np.nan_to_num(problem.slopes(at(values))[:, free])

    with np.errstate(all="ignore"):  # the solver rejects a step that overflows
        end = least_squares(residual, theta[free], jac=slopes, x_scale="jac", method="lm")
    return 2 * float(end.cost), at(end.x)


def covariance_of(slopes: Array, variance: float) -> Array | None:
    """variance (J'J)^-1 for the slopes J [m, p] of residuals; None if J'J is singular."""
    scale = np.linalg.norm(slopes, axis=0)
    if not np.all(scale > 0):
        return None
    _, singular, axes = np.linalg.svd(slopes / scale, full_matrices=False)
    if singular[-1] < 1e-10 * singular[0]:
        return None
    root = axes.T / singular / scale[:, None]
    return np.asarray(variance * root @ root.T)


def _polish(problem: Problem, start: Array, x: Array, y: Array) -> tuple[float, Array]:
    """Half the sum of squares, and phi, at the local minimum near `start`."""
    from scipy.optimize import least_squares

    low, high = np.array(list(problem.curve.bounds.values())).T

    def residual(phi: Array) -> Array:
        return problem.search_residual(phi, x, y)[0]

    def slopes(phi: Array) -> Array:
        return problem.search_residual(phi, x, y)[1]

    with np.errstate(over="ignore"):  # the solver rejects a step that overflows
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


def _names_at_bound(curve: Curve, phi: Array) -> tuple[str, ...]:
    """Names of the parameters that ended at a bound of the search."""
    return tuple(
        name
        for (name, (low, high)), value in zip(curve.bounds.items(), phi, strict=True)
        if np.isfinite(low) and min(value - low, high - value) < _NEAR_BOUND * (high - low)
    )
