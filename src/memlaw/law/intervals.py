"""How sure the parameters are: standard errors, profile likelihood, and a bootstrap over cells and their replicates."""

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

_STRIDE = 1.5
"""From one step outward to the next, until the profile has risen enough."""

_STRIDES = 14
"""Beyond 1.5^14 = 292 times the standard interval, an end is taken to be open."""

_FINE = 4e-3
"""To which share of the standard interval an end is found."""


@dataclass(frozen=True, eq=False)
class Ends:
    """Standard errors and 95% intervals of theta, [p] each; infinite where an end is open, NaN where unknown."""

    stderr: Array
    low: Array
    high: Array


def standard(theta: Array, covariance: Array | None, freedom: int) -> Ends:
    """theta -+ t stderr, Student's t."""
    stderr = np.full(len(theta), np.nan) if covariance is None else np.sqrt(np.diag(covariance))
    reach = _student(freedom) * stderr
    return Ends(stderr, theta - reach, theta + reach)


def profiled(problem: Problem, theta: Array, covariance: Array, freedom: int) -> Ends:
    """Where the least sum of squares with one coordinate held has risen to S (1 + t^2 / freedom).

    Unlike a standard interval it follows the curvature of the sum of squares, and it may be open.
    """
    plain = standard(theta, covariance, freedom)
    least, _ = refine(problem, theta, range(len(theta)))
    most = least * (1 + _student(freedom) ** 2 / freedom)
    ends = [
        [_profile_end(problem, theta, covariance, index, side * (plain.high - theta)[index], most) for side in (-1, 1)]
        for index in range(len(theta))
    ]
    low, high = np.array(ends).T
    return Ends(plain.stderr, low, high)


def _profile_end(problem: Problem, theta: Array, covariance: Array, index: int, reach: float, most: float) -> float:
    """The value of one coordinate, `reach` or so from its best, at which the sum of squares is `most`."""
    if reach == 0:
        return float(theta[index])
    others = [other for other in range(len(theta)) if other != index]
    along = covariance[:, index] / covariance[index, index]
    """How the others move with this one, to first order."""
    reached = theta

    def excess(step: float) -> float:
        """Also remembers where the others went, for the next step to begin there."""
        nonlocal reached
        begun = reached + (theta[index] + step - reached[index]) * along
        squares, reached = refine(problem, begun, others)
        return squares - most

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
    return float(theta[index] + (inner + outer) / 2)


def bootstrapped(problem: Problem, theta: Array, freedom: int) -> Ends:
    """Percentiles over fits to cells drawn with replacement, each with its replicates, and these drawn again within it.

    The percentiles lie further out than 2.5 and 97.5, as far as Student's t and the degrees of freedom ask: drawn cells
    scatter around their own fit by sqrt(freedom / cells) less than the true law's do (Hesterberg, arXiv 1411.5279).
    """
    from scipy.special import ndtr

    random = np.random.default_rng(_SEED)
    cells = len(problem.target)
    drawn = [_refitted(problem, theta, random) for _ in range(_DRAWS)]
    found = np.array([draw for draw in drawn if draw is not None])
    if len(found) < _DRAWS / 2:  # too few different cells for what the percentiles would mean
        unknown = np.full(len(theta), np.nan)
        return Ends(unknown, unknown, unknown)
    tail = float(ndtr(-_student(freedom) * math.sqrt(cells / freedom)))
    low, high = np.quantile(found, [tail, 1 - tail], axis=0)
    return Ends(found.std(axis=0, ddof=1) * math.sqrt(cells / freedom), low, high)


def _refitted(problem: Problem, theta: Array, random: np.random.Generator) -> Array | None:
    """theta fitted to drawn cells; None if those leave a parameter undetermined."""
    cells = random.integers(len(problem.target), size=len(problem.target))
    target = np.array([runs[random.integers(len(runs), size=len(runs))].mean() for runs in
                       (problem.runs[cell] for cell in cells)])  # fmt: skip
    again = replace(
        problem,
        x=problem.x[cells],
        y=problem.y[cells],
        target=target,
        weight=problem.weight[cells],
        loss_init=problem.loss_init[cells],
    )
    if len(set(cells.tolist())) < len(theta) or np.ptp(again.x) == 0 or np.ptp(again.y) == 0:
        return None
    _, found = refine(again, theta, range(len(theta)))
    if np.all(np.isfinite(found)):
        return found
    solution = solve(again)
    return None if solution is None else solution.theta


def estimates(curve: Curve, theta: Array, ends: Ends) -> dict[str, Estimate]:
    """The parameters themselves: what is positive travels as its logarithm, and its interval with it."""
    value, low, high = (curve.parameters(at) for at in (theta, ends.low, ends.high))
    stderr = np.where([name in curve.positive for name in curve.names], ends.stderr * value, ends.stderr)
    return {
        name: Estimate(float(value[i]), *(_known(at[i]) for at in (stderr, low, high)))
        for i, name in enumerate(curve.names)
    }


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _student(freedom: int) -> float:
    """How many standard errors a 95% interval reaches."""
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1), (1 + LEVEL) / 2))
