"""Uncertainty of the parameters: standard errors, profile likelihood, and a bootstrap over cells and replicates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from memlaw.core.points import Estimate
from memlaw.law.curve import Curve
from memlaw.law.growth import Array
from memlaw.law.search import Problem, refine, solve

LEVEL = 0.95

_DRAWS = 1000
_SEED = 0

# The search for the end of a profile interval multiplies its distance by 1.5 until the profile has risen enough. Beyond
# 1.5^14 = 292 times the standard interval the end counts as open. Bisection then locates it within 0.4%.
_STRIDE = 1.5
_STRIDES = 14
_FINE = 4e-3


@dataclass(frozen=True, eq=False)
class Ends:
    """Standard errors and 95% intervals of theta, [p] each; infinite where an end is open, NaN where unknown."""

    stderr: Array
    low: Array
    high: Array


def standard(theta: Array, covariance: Array | None, freedom: int) -> Ends:
    """theta -+ t stderr, with Student's t for `freedom` degrees of freedom."""
    stderr = np.full(len(theta), np.nan) if covariance is None else np.sqrt(np.diag(covariance))
    reach = _student(freedom) * stderr
    return Ends(stderr, theta - reach, theta + reach)


def profiled(problem: Problem, theta: Array, covariance: Array, freedom: int) -> Ends:
    """Profile likelihood: each coordinate ends where S, minimised over the others, reaches S_min (1 + t^2 / freedom).

    Unlike a standard interval it need not be symmetric, and it may be open.
    """
    plain = standard(theta, covariance, freedom)
    least, _ = refine(problem, theta, range(len(theta)))
    profile = _Profile(problem, theta, covariance, most=least * (1 + _student(freedom) ** 2 / freedom))
    reach = plain.high - theta
    low, high = (np.array([profile.end(i, side * reach[i]) for i in range(len(theta))]) for side in (-1, 1))
    return Ends(plain.stderr, low, high)


@dataclass(frozen=True, eq=False)
class _Profile:
    """The sum of squares around its minimum `theta`, up to the value `most`."""

    problem: Problem
    theta: Array
    covariance: Array
    most: float

    def end(self, index: int, reach: float) -> float:
        """The value of coordinate `index` at which the profile is `most`, searched from `reach` outward."""
        if reach == 0:
            return float(self.theta[index])
        others = [other for other in range(len(self.theta)) if other != index]
        # How the others move with this coordinate, to first order: a good start for minimising over them.
        direction = self.covariance[:, index] / self.covariance[index, index]
        current = self.theta

        def excess(step: float) -> float:
            nonlocal current  # each search begins where the last one ended
            begin = current + (self.theta[index] + step - current[index]) * direction
            squares, current = refine(self.problem, begin, others)
            return squares - self.most

        inner, outer = 0.0, reach
        for _ in range(_STRIDES):
            if excess(outer) > 0:
                break
            inner, outer = outer, _STRIDE * outer
        else:
            return math.copysign(math.inf, reach)
        while abs(outer - inner) > _FINE * abs(reach):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if excess(middle) > 0 else (middle, outer)
        return float(self.theta[index] + (inner + outer) / 2)


def bootstrapped(problem: Problem, theta: Array, freedom: int) -> Ends:
    """Percentiles over fits to resampled cells, each with its replicates resampled too.

    The percentiles are wider than 2.5% and 97.5%, by Student's t and sqrt(cells / freedom): resampled cells scatter
    around their own fit by sqrt(freedom / cells) less than around the true law (Hesterberg, arXiv 1411.5279).
    """
    from scipy.special import ndtr

    random = np.random.default_rng(_SEED)
    cells = len(problem.target)
    fits = [_refitted(problem, theta, random) for _ in range(_DRAWS)]
    thetas = np.array([fit for fit in fits if fit is not None])
    if len(thetas) < _DRAWS / 2:  # too few distinct cells for the percentiles to mean anything
        unknown = np.full(len(theta), np.nan)
        return Ends(unknown, unknown, unknown)
    tail = float(ndtr(-_student(freedom) * math.sqrt(cells / freedom)))
    low, high = np.quantile(thetas, [tail, 1 - tail], axis=0)
    return Ends(thetas.std(axis=0, ddof=1) * math.sqrt(cells / freedom), low, high)


def _refitted(problem: Problem, theta: Array, random: np.random.Generator) -> Array | None:
    """theta fitted to resampled cells; None if they do not determine every parameter."""
    cells = random.integers(len(problem.target), size=len(problem.target))
    resampled_runs = (problem.runs[cell] for cell in cells)
    target = np.array([runs[random.integers(len(runs), size=len(runs))].mean() for runs in resampled_runs])
    resampled = replace(
        problem,
        x=problem.x[cells],
        y=problem.y[cells],
        target=target,
        weight=problem.weight[cells],
        loss_init=problem.loss_init[cells],
    )
    if len(set(cells.tolist())) < len(theta) or np.ptp(resampled.x) == 0 or np.ptp(resampled.y) == 0:
        return None
    _, refitted = refine(resampled, theta, range(len(theta)))
    if np.all(np.isfinite(refitted)):
        return refitted
    solution = solve(resampled)
    return None if solution is None else solution.theta


def estimates(curve: Curve, theta: Array, ends: Ends) -> dict[str, Estimate]:
    """The parameters and their intervals. Positive ones are fitted as logarithms, and so are their intervals."""
    value, low, high = (curve.parameters(at) for at in (theta, ends.low, ends.high))
    stderr = np.where([name in curve.positive for name in curve.names], ends.stderr * value, ends.stderr)
    return {
        name: Estimate(float(value[i]), *(_known(at[i]) for at in (stderr, low, high)))
        for i, name in enumerate(curve.names)
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _student(freedom: int) -> float:
    """Half-width of a 95% interval in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), (1 + LEVEL) / 2))
