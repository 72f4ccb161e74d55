"""Transfer a law to other data (`calibrate`), another placement (`over_parameters`) or another model (`borrow`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from memlaw.core.errors import FitError
from memlaw.core.points import LawPoint
from memlaw.law.fit import missing_loss, off_scale, quality, run_deviation, span, with_law
from memlaw.law.growth import Array
from memlaw.law.intervals import standard
from memlaw.law.messages import ALL_SATURATED
from memlaw.law.points import all_saturated, cells_of, check, loss_table, memoryless_table, points_for_form, usable
from memlaw.law.residuals import SCALES
from memlaw.law.result import LawFit
from memlaw.law.search import covariance_of, problem_of, refine

# Number of cells needed to refit a second parameter.
_LEAST_FOR_TWO = 3


def calibrate(fit: LawFit, points: Iterable[LawPoint]) -> LawFit:
    """The law for another kind of data: C and b refitted to a few cells, with the exponents (alpha, beta, n) kept.

    The exponents describe how memory scales, and transfer; the nats a token costs, and those gained from the token
    distribution, do not. With fewer than three cells only C is refitted. (The log form refits a and k, or a, and keeps
    q; the power and memory forms refit C.) L_init becomes that of the new cells. The uncertainty combines that of the
    exponents with that of the new cells, whose scatter is taken to be at least the old one. An extension by memlaw, not
    part of the paper.

    Raises FitError if no new cell is usable, or all are saturated.
    """
    points = tuple(points)
    kept = usable(points, fit.form, fit.axis)
    if not kept or all_saturated(points, fit.axis):
        unknown = fit.curve.bounded and not kept
        raise FitError(f"No cell to calibrate with. {missing_loss(points) if unknown else ALL_SATURATED}")
    check(points, fit.axis)
    seen = points_for_form(fit.form, kept)
    cells = cells_of(seen, fit.axis, loss_table(seen if fit.curve.memoryless else points))
    if refusal := off_scale(fit, cells):
        raise FitError(f"These cells cannot calibrate the law. {refusal}")
    problem = problem_of(cells, fit.curve, SCALES[fit.residuals])
    names = fit.curve.growth.moved[: 2 if len(cells.size) >= _LEAST_FOR_TWO else 1]
    free = sorted(fit.curve.names.index(name) for name in names)
    _, theta = refine(problem, fit.theta, free)
    if not (cells.delta > 0).any() or not fit.curve.is_finite(theta):
        raise FitError(
            "These cells cannot calibrate the law: training did not lower their loss. Check that it converged."
        )
    sigma, freedom, spare = fit.sigma, fit.freedom, len(cells.size) - len(free)
    scatter = run_deviation(problem, theta, spare) if spare else 0.0
    if sigma is not None and scatter > sigma:
        sigma, freedom = scatter, spare
    covariance = _covariance(fit, problem.slopes(theta), free, sigma)
    moved = " and ".join(names)
    carried = replace(
        fit,
        n=len(cells.size),
        runs=len(kept),
        intervals="standard",
        sigma=sigma,
        freedom=freedom,
        ranks=span((*fit.ranks, *(point.rank for point in kept))),
        sizes=span((*fit.sizes, *cells.size)),
        lengths=span((*fit.lengths, *cells.length)),
        loss_init=loss_table(points) or fit.loss_init,
        loss_memoryless=memoryless_table(points) or fit.loss_memoryless,
        source=f"{fit.source}, {moved} refitted to {len(cells.size)} cells",
        caveat=fit.caveat and f"Exponents borrowed from {fit.source}; only {moved} come from this model's own cells.",
    )
    carried = with_law(carried, theta, covariance, standard(theta, covariance, freedom))
    r2, mape = quality(carried, kept)
    return replace(carried, r2=r2, mape=mape)


def borrow(fit: LawFit, *, factor: float, caveat: str) -> LawFit:
    """The law for a model it was not fitted to: its sizes are right within `factor`, either way, with probability 95%.

    Widens the uncertainty of C (of a in the log form) accordingly and keeps the values. Every plan repeats `caveat`.
    Raises FitError for a law without error bars.
    """
    if fit.covariance is None:
        raise FitError(f"A law without error bars cannot be borrowed. {fit.status}")
    theta = fit.theta
    per_log_size = fit.curve.shifted(theta, 1.0, 0.0) - theta
    covariance = np.array(fit.covariance) + np.outer(per_log_size, per_log_size) * (math.log(factor) / 1.96) ** 2
    lent = replace(fit, intervals="standard", caveat=caveat)
    return with_law(lent, theta, covariance, standard(theta, covariance, fit.freedom))


def over_parameters(fit: LawFit, parameters_per_rank: float) -> LawFit:
    """The same law with the adapter's parameters as the size instead of the rank; predictions are unchanged."""
    if fit.axis == "parameters":
        return fit
    step, log_unit = 1e-6, -math.log(parameters_per_rank)
    theta = fit.curve.shifted(fit.theta, log_unit, 0.0)
    covariance = None
    if fit.covariance is not None:
        aside = step * np.eye(len(theta))
        above, below = (
            np.array([fit.curve.shifted(fit.theta + sign * each, log_unit, 0.0) for each in aside]) for sign in (1, -1)
        )
        slopes = (above - below).T / (2 * step)
        covariance = slopes @ np.array(fit.covariance) @ slopes.T
    sizes = (fit.ranks[0] * parameters_per_rank, fit.ranks[1] * parameters_per_rank)
    moved = replace(fit, axis="parameters", sizes=sizes, intervals="standard")
    return with_law(moved, theta, covariance, standard(theta, covariance, fit.freedom))


def _covariance(fit: LawFit, slopes: Array, free: list[int], sigma: float | None) -> Array | None:
    """The exponents keep their covariance, and their uncertainty propagates to the refitted parameters.

    If the exponents move by d, the refitted parameters follow by F d with F = -pinv(J_free) J_kept, so the blocks below
    are the covariances of (exponents, F exponents + own error).
    """
    own = None if sigma is None else covariance_of(slopes[:, free], sigma**2)
    if fit.covariance is None or own is None:
        return None
    kept = [index for index in range(slopes.shape[1]) if index not in free]
    exponents = np.array(fit.covariance)[np.ix_(kept, kept)]
    follow = -np.linalg.pinv(slopes[:, free]) @ slopes[:, kept]
    covariance = np.empty((slopes.shape[1],) * 2)
    covariance[np.ix_(kept, kept)] = exponents
    covariance[np.ix_(free, kept)] = follow @ exponents
    covariance[np.ix_(kept, free)] = (follow @ exponents).T
    covariance[np.ix_(free, free)] = own + follow @ exponents @ follow.T
    return covariance
