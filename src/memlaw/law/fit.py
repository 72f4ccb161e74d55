"""Fit a law, and say in a sentence when it cannot be believed; carry a law to other data or another model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from memlaw.errors import ConfigError, FitError
from memlaw.law.curve import (
    BEND,
    PARAMETERS,
    POSITIVE,
    Array,
    Form,
    covariance_of,
    curve,
    least_squares_fit,
    refit_scale,
)
from memlaw.law.points import is_saturated, loss_table
from memlaw.law.record import Axis, LawFit
from memlaw.records import Estimate, LawPoint

NO_FINAL_LOSS = (
    "The bounded form needs L_init = final_loss + delta_loss, and no cell has a final loss. Add the column final_loss, "
    "or fit the paper's form."
)
ALL_SATURATED = (
    "All cells are saturated (final loss <= 0.69 nats): they show that the adapter holds this much, not where it "
    "stops. Probe smaller ranks or longer lengths."
)
ONE_RANK = "All cells have one {axis}, so nothing tells how dL grows with it. Probe at least two."
ONE_LENGTH = "All cells have one length, so nothing tells how dL falls with it. Probe at least two."
TOO_FEW = (
    "{n} usable cells cannot determine {p} parameters and leave any doubt to measure: at least {needed} are needed. "
    "Finish more of the grid."
)
NO_GROWTH = "dL does not grow with the {axis} in these cells, so they show no capacity. Check that training converged."
NOT_IDENTIFIABLE = (
    "Not identifiable: other parameters fit these cells just as well, as when longer lengths were only measured at "
    "higher ranks. Cross every rank with every length."
)
NOT_IDENTIFIABLE_POWER = (
    "Not identifiable: alpha's 95% interval reaches 0, where the power becomes a logarithm and C runs to infinity. "
    "Predictions inside the fitted range may still be good; the exponents mean nothing. Widen the grid, or try the "
    "{other} form."
)
NOT_IDENTIFIABLE_OFFSET = (
    "Not identifiable: the offset b cannot be told from the power term (its 95% interval spans more nats than the "
    "largest dL). Predictions inside the fitted range may still be good; the parameters mean nothing. Widen the grid."
)
NOT_IDENTIFIABLE_BEND = (
    "Not identifiable: how sharply dL bends to L_init (n), since too few cells are near it. Add cells near saturation, "
    "or fit the paper's form."
)
AT_BOUND = "{names} stopped at the edge of the search, so the error bars mean nothing. Widen the grid: {advice}."
_ADVICE = {"alpha": "more ranks", "beta": "more lengths", "n": "more cells near saturation"}
_OTHER: dict[Form, Form] = {"paper": "bounded", "bounded": "paper"}
_LEAST_FOR_OFFSET = 3
"""Cells from which calibration moves b besides C."""


def fit_law(
    points: Iterable[LawPoint], form: Form = "paper", *, axis: Axis = "rank", source: str = "the points given"
) -> LawFit:
    """Least squares on dL: the law of these cells, with standard errors and a status.

    paper: dL = C r^alpha l^-beta + b on the unsaturated cells (final loss > 0.69, or unknown), arXiv 2605.30260.
    bounded: the same power law u under a soft ceiling, dL = L (1 + (u/L)^-n)^(-1/n), on every cell with a final loss.
    `axis` "parameters" takes the points' effective parameters in place of the rank.

    Cells that no law can be fitted to give a LawFit whose status says why, with the numbers there are. Raises
    ConfigError for an unknown form or axis, FitError for cells that are not numbers.
    """
    if form not in get_args(Form) or axis not in get_args(Axis):
        raise ConfigError(
            f"There is no law of form {form!r} on axis {axis!r}. Forms: {', '.join(get_args(Form))}; axes: "
            f"{', '.join(get_args(Axis))}."
        )
    points = tuple(points)
    sizes = [size_of(point, axis) for point in points]
    for point in points:
        _check(point)
    if not points:
        raise FitError("There are no cells to fit. Run `memlaw probe`, or give a CSV file of points.")
    cells = usable(points, form)
    fit = LawFit(
        form, "", len(cells), {}, None, None, None, None, 0, axis,
        ranks=_span(p.rank for p in cells or points),
        sizes=_span([size_of(p, axis) for p in cells] or sizes),
        lengths=_span(p.length for p in cells or points),
        loss_init=loss_table(points),
        source=source,
    )  # fmt: skip
    refusal = _refusal(fit, points, cells)
    return replace(fit, status=refusal) if refusal else _solved(fit, cells)


def calibrate(fit: LawFit, points: Iterable[LawPoint]) -> LawFit:
    """The same exponents (alpha, beta, n) for another kind of data: C and b refitted to a few cells of it.

    The exponents say how memory scales and carry over; how many nats a token costs, and how many come from learning
    the token distribution, do not. Fewer than three cells, or cells of one rank and length, move C alone. The table
    of L_init becomes the new cells'. memlaw's own, not the paper's. Error bars add the doubt of the exponents to that
    of the new cells, whose scatter is taken to be at least that of the old.

    Raises FitError if no new cell is usable, or all are saturated.
    """
    points = tuple(points)
    cells = usable(points, fit.form)
    if not cells or all(is_saturated(point) for point in points):
        raise FitError(f"No cell to calibrate with. {ALL_SATURATED if cells or fit.form == 'paper' else NO_FINAL_LOSS}")
    table = loss_table(points)
    size, length, delta, ceiling = _arrays(cells, fit.axis, fit.form, table)
    offset = len(cells) >= _LEAST_FOR_OFFSET and len(set(zip(size, length, strict=True))) > 1
    theta = refit_scale(fit.theta, size, length, delta, ceiling, offset=offset)
    predicted, slopes = curve(theta, size, length, ceiling)
    residual = delta - predicted
    free = [0, 3] if offset else [0]
    moved = "C and b" if offset else "C"
    sigma, freedom = fit.sigma, fit.freedom
    spare = len(cells) - len(free)
    scatter = math.sqrt(residual @ residual / spare) if spare else 0.0
    if sigma is not None and scatter > sigma:
        sigma, freedom = scatter, spare
    covariance = _calibrated_covariance(fit, slopes, free, sigma)
    return replace(
        fit,
        n=len(cells),
        parameters=_estimates(fit.form, theta, covariance, freedom),
        covariance=_plain(covariance),
        r2=r2(delta, residual),
        mape=mape(delta, predicted),
        sigma=sigma,
        freedom=freedom,
        ranks=_span((*fit.ranks, *(p.rank for p in cells))),
        sizes=_span((*fit.sizes, *size)),
        lengths=_span((*fit.lengths, *length)),
        loss_init=table or fit.loss_init,
        source=f"{fit.source}, {moved} refitted to {len(cells)} cells",
        caveat=fit.caveat and f"Exponents borrowed from {fit.source}; only {moved} come from this model's own cells.",
    )


def borrow(fit: LawFit, *, factor: float, caveat: str) -> LawFit:
    """The law for a model it was not fitted to: the size it asks for is right within `factor` either way, 95% sure.

    Widens the doubt of C accordingly; the values stay. `caveat` travels with the law into every plan.
    """
    if fit.covariance is None:
        raise FitError(f"A law without error bars cannot be borrowed. {fit.status}")
    covariance = np.array(fit.covariance)
    covariance[0, 0] += (fit.alpha.value * math.log(factor) / 1.96) ** 2
    estimates = _estimates(fit.form, fit.theta, covariance, fit.freedom)
    return replace(fit, parameters=estimates, covariance=_plain(covariance), caveat=caveat)


# --- parts -----------------------------------------------------------------------------------------------------------


def usable(points: Sequence[LawPoint], form: Form) -> tuple[LawPoint, ...]:
    """paper: the unsaturated cells; bounded: those with a final loss."""
    if form == "paper":
        return tuple(point for point in points if not is_saturated(point))
    return tuple(point for point in points if point.final_loss is not None)


def size_of(point: LawPoint, axis: Axis) -> float:
    if axis == "rank":
        return point.rank
    if point.parameters is None:
        raise FitError(
            f"The cell of rank {point.rank:g} and length {point.length:g} has no number of parameters, so it has no "
            "place on that axis. Add the column parameters, or fit over ranks."
        )
    return point.parameters


def mape(measured: Array, predicted: Array) -> float:
    """Mean |predicted / measured - 1|, percent; a cell that measured 0 has no such ratio and is left out."""
    some = measured != 0
    return float(100 * np.mean(np.abs(predicted[some] / measured[some] - 1))) if some.any() else 0.0


def r2(delta: Array, residual: Array) -> float:
    """Share of the variance of dL explained; 0 where dL does not vary, since there is nothing to explain."""
    total = float(((delta - delta.mean()) ** 2).sum())
    return 1 - float(residual @ residual) / total if total > 0 else 0.0


def _check(point: LawPoint) -> None:
    numbers = [point.rank, point.length, point.delta_loss, point.final_loss, point.parameters]
    if not all(math.isfinite(number) for number in numbers if number is not None) or min(point.rank, point.length) <= 0:
        raise FitError(
            f"The cell of rank {point.rank:g} and length {point.length:g} is not a measurement: rank and length must "
            "be above 0 and every loss finite. Leave out cells that did not finish."
        )


def _refusal(fit: LawFit, points: Sequence[LawPoint], cells: Sequence[LawPoint]) -> str:
    """Why there is nothing to fit; empty if there is."""
    parameters = len(PARAMETERS[fit.form])
    if fit.form == "bounded" and not cells:
        return NO_FINAL_LOSS
    if all(is_saturated(point) for point in points):
        return ALL_SATURATED
    if fit.sizes[0] == fit.sizes[1]:
        return ONE_RANK.format(axis=fit.axis)
    if fit.lengths[0] == fit.lengths[1]:
        return ONE_LENGTH
    return _too_few(fit) if len(cells) < parameters else ""


def _too_few(fit: LawFit) -> str:
    parameters = len(PARAMETERS[fit.form])
    return TOO_FEW.format(n=fit.n, p=parameters, needed=parameters + 1)


def _solved(fit: LawFit, cells: Sequence[LawPoint]) -> LawFit:
    size, length, delta, ceiling = _arrays(cells, fit.axis, fit.form, fit.loss_init)
    solution = least_squares_fit(size, length, delta, ceiling)
    if solution is None:
        return replace(fit, status=NO_GROWTH.format(axis=fit.axis))
    predicted, slopes = curve(solution.theta, size, length, ceiling)
    residual = delta - predicted
    spare = len(cells) - len(solution.theta)
    sigma = math.sqrt(residual @ residual / spare) if spare else None
    covariance = None if sigma is None else covariance_of(slopes, sigma**2)
    fit = replace(
        fit,
        parameters=_estimates(fit.form, solution.theta, covariance, spare),
        covariance=_plain(covariance),
        r2=r2(delta, residual),
        mape=mape(delta, predicted),
        sigma=sigma,
        freedom=spare,
    )
    return replace(fit, status=_doubt(fit, solution.stopped, float(np.abs(delta).max())))


def _doubt(fit: LawFit, stopped: tuple[str, ...], largest: float) -> str:
    """The status of a fit that has numbers: ok, or why they should not be believed."""
    if fit.sigma is None:
        return _too_few(fit)
    if fit.covariance is None:
        return NOT_IDENTIFIABLE
    if fit.alpha.low is None or fit.alpha.low <= 0:
        return NOT_IDENTIFIABLE_POWER.format(other=_OTHER[fit.form])
    if fit.form == "bounded" and (fit.parameters["n"].high or math.inf) > BEND[1]:
        return NOT_IDENTIFIABLE_BEND
    if stopped:
        return AT_BOUND.format(names=" and ".join(stopped), advice="; ".join(_ADVICE[name] for name in stopped))
    if fit.b.low is None or fit.b.high is None or fit.b.high - fit.b.low > largest:
        return NOT_IDENTIFIABLE_OFFSET
    return "ok"


def _arrays(
    cells: Sequence[LawPoint], axis: Axis, form: Form, table: tuple[tuple[float, float], ...]
) -> tuple[Array, Array, Array, Array | None]:
    """Size, length, dL and L_init of each cell (None for the paper's form), each [m]."""
    size = np.array([size_of(point, axis) for point in cells], dtype=float)
    length = np.array([point.length for point in cells], dtype=float)
    delta = np.array([point.delta_loss for point in cells], dtype=float)
    measured = dict(table)
    ceiling = None if form == "paper" else np.array([measured[point.length] for point in cells])
    return size, length, delta, ceiling


def _estimates(form: Form, theta: Array, covariance: Array | None, freedom: int) -> dict[str, Estimate]:
    """Values with standard errors and Student's 95% intervals; those of C and n are taken on their logarithm."""
    from scipy.special import stdtrit

    errors = np.full(len(theta), np.nan) if covariance is None else np.sqrt(np.diag(covariance))
    reach = float(stdtrit(max(freedom, 1), 0.975)) * errors
    low, high = theta - reach, theta + reach
    logarithms = np.array([name in POSITIVE for name in PARAMETERS[form]])
    with np.errstate(over="ignore"):
        value, low, high = (np.where(logarithms, np.exp(at), at) for at in (theta, low, high))
    errors = np.where(logarithms, errors * value, errors)
    known = (
        tuple(float(at) if np.isfinite(at) else None for at in doubt) for doubt in zip(errors, low, high, strict=True)
    )
    return {name: Estimate(float(at), *doubt) for name, at, doubt in zip(PARAMETERS[form], value, known, strict=True)}


def _calibrated_covariance(fit: LawFit, slopes: Array, free: list[int], sigma: float | None) -> Array | None:
    """The exponents keep their covariance; what they leave open moves the refitted parameters with them."""
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


def _plain(covariance: Array | None) -> tuple[tuple[float, ...], ...] | None:
    return None if covariance is None else tuple(tuple(map(float, row)) for row in covariance)


def _span(values: Iterable[float]) -> tuple[float, float]:
    listed = [float(value) for value in values]
    return min(listed), max(listed)
