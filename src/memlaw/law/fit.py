"""Fit a law, and say in a sentence when its numbers cannot be trusted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypedDict, Unpack, get_args

import numpy as np

from memlaw.core.errors import ConfigError
from memlaw.core.points import LawPoint
from memlaw.law.curve import BEND, FORMS, Form
from memlaw.law.growth import LEAST_ALPHA, Array
from memlaw.law.intervals import Ends, bootstrapped, estimates, profiled, standard
from memlaw.law.messages import (
    ALL_SATURATED,
    AT_BOUND,
    LEFT_OUT,
    MERGED,
    NO_CEILING,
    NO_FINAL_LOSS,
    NO_GROWTH,
    NO_MEMORYLESS_LOSS,
    NO_REPLICATES,
    NOT_IDENTIFIABLE,
    NOT_IDENTIFIABLE_BEND,
    NOT_IDENTIFIABLE_GROWTH,
    NOT_IDENTIFIABLE_OFFSET,
    NOT_IDENTIFIABLE_POWER,
    ONE_LENGTH,
    ONE_RANK,
    RAN_AWAY,
    TOO_FEW,
    WORSE,
)
from memlaw.law.points import (
    Axis,
    Cells,
    all_saturated,
    cells_of,
    check,
    groups,
    loss_table,
    memoryless_table,
    points_for_form,
    size_of,
    usable,
)
from memlaw.law.residuals import SCALES, Residuals
from memlaw.law.result import Intervals, LawFit, Origin
from memlaw.law.search import Problem, Solution, covariance_of, problem_of, solve

_ADVICE = {"alpha": "more ranks", "beta": "more lengths", "q": "more lengths", "n": "more cells near saturation"}

_LOSSES = ("a final loss", "a final loss and L_init'")

_LEAST_CELLS = 5

# Nats below which a relative error has no meaning.
_NO_GAIN = 1e-6


class Provenance(TypedDict, total=False):
    """Where the cells of a law come from; kept with the law."""

    source: str
    """In words; "the points given" by default."""
    origin: Origin | None
    """What the cells were measured on."""


def fit_law(
    points: Iterable[LawPoint],
    form: Form = "paper",
    *,
    axis: Axis = "rank",
    residuals: Residuals = "absolute",
    intervals: Intervals = "standard",
    **provenance: Unpack[Provenance],
) -> LawFit:
    """Fit the law to these cells by least squares, with error bars, warnings and a status.

    Minimises sum_i w_i^2 (T(measured dL_i) - T(dL(s_i, l_i)))^2 over cells i of size s_i and length l_i. The paper's
    form is that of arXiv 2605.30260; the others are memlaw's own.

    Args:
        points: measured cells. Points of the same size and length are replicates and count as one cell.
        form: paper: dL = C s^alpha l^-beta + b; power: without b; log: dL = a + k (ln s - q ln l), the limit for
            alpha -> 0. These use the unsaturated cells (final loss > 0.69 nats, or unknown). bounded: the paper's u
            below a soft ceiling, dL = L (1 + (u/L)^-n)^(-1/n) with L = L_init, on every cell with a final loss.
            memory: the power form's u below L', plus L - L' nats that need no memory, on every cell with an L'.
        axis: what s is: the rank, or the effective parameters, which allow cells of several placements.
        residuals: absolute: T = identity and w = 1; relative: T = ln; replicates: w from each cell's replicates.
        intervals: kind of the 95% intervals, see `LawFit.intervals`.
        provenance: source (words) and origin (`Origin`), kept with the law.

    If the cells determine no law, `status` says why, and the result holds the numbers that could be computed. Raises
    ConfigError for an unknown form, axis, residuals or intervals, and FitError for points that are not measurements.
    """
    for value, kind in ((form, Form), (axis, Axis), (residuals, Residuals), (intervals, Intervals)):
        if value not in get_args(kind):
            raise ConfigError(f"A law cannot be fitted with {value!r}. Choose one of {', '.join(get_args(kind))}.")
    points = tuple(points)
    check(points, axis)
    kept = usable(points, form, axis)
    seen = points_for_form(form, kept)
    cells = cells_of(seen, axis, loss_table(seen if FORMS[form].memoryless else points))
    fit = LawFit(
        form=form,
        status="",
        warnings=_warnings(points, kept, cells, form, axis),
        n=len(cells.size),
        runs=len(kept),
        parameters={},
        intervals=intervals,
        covariance=None,
        r2=None,
        mape=None,
        residuals=residuals,
        sigma=None,
        freedom=0,
        axis=axis,
        ranks=span(point.rank for point in kept or points),
        sizes=span(size_of(point, axis) for point in kept or points),
        lengths=span(point.length for point in kept or points),
        loss_init=loss_table(points),
        loss_memoryless=memoryless_table(points),
        **provenance,
    )
    refusal = _refusal(fit, points, cells)
    return replace(fit, status=refusal) if refusal else _solved(fit, kept, cells)


def _warnings(
    points: Sequence[LawPoint], kept: Sequence[LawPoint], cells: Cells, form: Form, axis: Axis
) -> tuple[str, ...]:
    n, left_out = len(cells.size), len(points) - len(kept)
    worse = int((cells.delta < 0).sum())
    warnings = []
    if worse:
        warnings.append(WORSE.format(count=worse, n=n))
    if len(kept) > n:
        warnings.append(MERGED.format(runs=len(kept), n=n))
    if left_out and FORMS[form].bounded:
        warnings.append(NO_CEILING.format(count=left_out, loss=_LOSSES[FORMS[form].memoryless], form=form))
    elif left_out:
        warnings.append(LEFT_OUT.format(count=len(groups(points, axis)) - n))
    return tuple(warnings)


def _refusal(fit: LawFit, points: Sequence[LawPoint], cells: Cells) -> str:
    """Why these cells cannot be fitted; empty if they can."""
    if fit.curve.bounded and not fit.n:
        return missing_loss(points)
    if all_saturated(points, fit.axis):
        return ALL_SATURATED
    if fit.sizes[0] == fit.sizes[1]:
        return ONE_RANK.format(axis="number of parameters" if fit.axis == "parameters" else fit.axis)
    if fit.lengths[0] == fit.lengths[1]:
        return ONE_LENGTH
    if fit.n < len(fit.curve.names):
        return _too_few(fit)
    if SCALES[fit.residuals].weighted and fit.runs == fit.n:
        return NO_REPLICATES
    return off_scale(fit, cells)


def _too_few(fit: LawFit) -> str:
    parameters = len(fit.curve.names)
    return TOO_FEW.format(n=fit.n, p=parameters, needed=_needed_cells(parameters))


def _needed_cells(parameters: int) -> int:
    return max(_LEAST_CELLS, parameters + 1)


def _solved(fit: LawFit, kept: Sequence[LawPoint], cells: Cells) -> LawFit:
    problem = problem_of(cells, fit.curve, SCALES[fit.residuals])
    solution = solve(problem)
    if solution is None:
        return replace(fit, status=NO_GROWTH.format(axis=fit.axis))
    if not fit.curve.is_finite(solution.theta):
        return replace(fit, status=RAN_AWAY.format(axis=fit.axis))
    spare = fit.n - len(solution.theta)
    sigma = run_deviation(problem, solution.theta, spare) if spare else None
    squares = problem.residual(solution.theta)
    covariance = covariance_of(problem.slopes(solution.theta), float(squares @ squares) / spare) if spare else None
    fit = replace(fit, sigma=sigma, freedom=spare)
    fit = with_law(fit, solution.theta, covariance, _ends(fit, problem, solution.theta, covariance))
    if fit.n >= _needed_cells(len(fit.parameters)):
        r2, mape = quality(fit, kept)
        fit = replace(fit, r2=r2, mape=mape)
    return replace(fit, status=_status(fit, solution, float(np.abs(cells.delta).max())))


def _ends(fit: LawFit, problem: Problem, theta: Array, covariance: Array | None) -> Ends:
    if covariance is None or fit.intervals == "standard":
        return standard(theta, covariance, fit.freedom)
    if fit.intervals == "profile":
        return profiled(problem, theta, covariance, fit.freedom)
    return bootstrapped(problem, theta, fit.freedom)


def _status(fit: LawFit, solution: Solution, largest: float) -> str:
    """ "ok", or why the parameters should not be trusted; `largest` is the largest |dL| of a cell."""
    if fit.n < _needed_cells(len(fit.parameters)):
        return _too_few(fit)
    if fit.covariance is None:
        return NOT_IDENTIFIABLE
    growing = "alpha" if "alpha" in fit.parameters else "k"
    if not _is_growing(fit, growing):
        if "b" in fit.parameters:
            return NOT_IDENTIFIABLE_POWER
        return NOT_IDENTIFIABLE_GROWTH.format(name=growing, axis=fit.axis)
    if fit.curve.bounded and (fit.parameters["n"].high or math.inf) > BEND[1]:
        return NOT_IDENTIFIABLE_BEND
    if solution.stopped:
        names = solution.stopped
        return AT_BOUND.format(names=" and ".join(names), advice="; ".join(_ADVICE[name] for name in names))
    if "b" in fit.parameters and (fit.b.low is None or fit.b.high is None or fit.b.high - fit.b.low > largest):
        return NOT_IDENTIFIABLE_OFFSET
    return "ok"


def _is_growing(fit: LawFit, name: str) -> bool:
    """Whether the 95% interval of this exponent or factor excludes 0.

    k is fitted as ln k, whose interval never reaches 0; its standard error decides instead.
    """
    estimate = fit.parameters[name]
    if name in fit.curve.positive:
        return estimate.stderr is not None and 2 * estimate.stderr < estimate.value
    return estimate.low is not None and estimate.low > LEAST_ALPHA


def off_scale(fit: LawFit, cells: Cells) -> str:
    """Why the scale of the residuals does not exist for some cells; empty if it exists for all."""
    scale = SCALES[fit.residuals]
    undefined = [not scale.defined(runs, start).all() for runs, start in zip(cells.runs, cells.loss_init, strict=True)]
    if not any(undefined):
        return ""
    first = undefined.index(True)
    return scale.refusal.format(count=sum(undefined), axis=fit.axis, size=cells.size[first], length=cells.length[first])


def with_law(fit: LawFit, theta: Array, covariance: Array | None, ends: Ends) -> LawFit:
    """The fit with these parameters and their uncertainty."""
    return replace(
        fit,
        parameters=estimates(fit.curve, theta, ends),
        covariance=None if covariance is None else tuple(tuple(map(float, row)) for row in covariance),
    )


def run_deviation(problem: Problem, theta: Array, spare: int) -> float:
    """Standard deviation of one new run around the law, on the scale of the residuals.

    sigma^2 = sum (target - predicted)^2 / spare + within (1 - mean(1 / m)) for cells of m runs: the mean of m runs has
    1 / m of the variance within cells, and the second term restores the rest.
    """
    error = problem.predicted(theta)[0] - problem.target
    averaged = float(np.mean([1 / len(runs) for runs in problem.runs]))
    return math.sqrt(float(error @ error) / spare + problem.within * (1 - averaged))


def quality(fit: LawFit, points: Sequence[LawPoint]) -> tuple[float, float]:
    """R^2 and MAPE (percent) of dL over the cells of these points, for any form and residuals."""
    cells = cells_of(points, fit.axis, loss_table(points))
    delta, start = cells.delta, cells.loss_init if fit.curve.bounded else None
    predicted = fit.predict(cells.size, cells.length, loss_init=start)
    return r_squared(delta, delta - predicted), mean_error(delta, predicted)


def missing_loss(points: Sequence[LawPoint]) -> str:
    """Why a bounded form can use none of these points."""
    return NO_FINAL_LOSS if all(point.final_loss is None for point in points) else NO_MEMORYLESS_LOSS


def percent_errors(measured: Array, predicted: Array) -> Array:
    """|predicted / measured - 1| in percent, without the cells whose dL is 0 or nearly 0."""
    some = np.abs(measured) > _NO_GAIN
    return np.asarray(100 * np.abs(predicted[some] / measured[some] - 1))


def mean_error(measured: Array, predicted: Array) -> float:
    """Mean of `percent_errors`; 0 if no cell has one."""
    percent = percent_errors(measured, predicted)
    return float(percent.mean()) if percent.size else 0.0


def r_squared(delta: Array, residual: Array) -> float:
    """1 - SSE / SST of dL; 0 if dL does not vary."""
    total = float(((delta - delta.mean()) ** 2).sum())
    return 1 - float(residual @ residual) / total if total > 0 else 0.0


def span(values: Iterable[float]) -> tuple[float, float]:
    listed = [float(value) for value in values]
    return min(listed), max(listed)
