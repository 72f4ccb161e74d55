"""Is the law right where it was not fitted? Hold-out errors, and the forms against each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memlaw.core.errors import ConfigError, FitError
from memlaw.core.points import LawPoint
from memlaw.law.curve import FORMS, Form
from memlaw.law.fit import errors, fit_law, mean_error, quality
from memlaw.law.growth import Array
from memlaw.law.points import Axis, Cells, cells_of, loss_table, points_for_form, size_of, usable
from memlaw.law.residuals import SCALES, Residuals
from memlaw.law.result import Holdout, LawFit
from memlaw.law.search import problem_of

STANDARD_HOLDOUTS = ("length=MAX", "rank=MAX", "corner=MAX")
"""What forms are compared by: the growth of a plan is towards longer texts, higher ranks, and both."""

_SPEC = re.compile(r"(rank|length)(=|>=)(MAX|\d{1,15})")

_CORNER = "corner=MAX"

_LEVEL = 0.9

Choice = Callable[[LawPoint], bool]


def holdout(
    points: Iterable[LawPoint],
    form: Form = "paper",
    spec: str = "length=MAX",
    *,
    axis: Axis = "rank",
    residuals: Residuals = "absolute",
) -> Holdout:
    """Fit without the cells that `spec` names, predict them.

    `length=MAX`, `rank=MAX`: the largest; `length=2000`, `rank>=12`; `corner=MAX`: cells in the upper half both of the
    sizes and of the lengths that there are, so that the rest has every size and length, but no large adapter with a
    long text. Held-out cells bring their own L_init, which costs no training to measure. All forms but the bounded one
    are judged on unsaturated cells only. Raises ConfigError for a spec of another shape or that names no cell, FitError
    where the remaining cells give no law with error bars.
    """
    kept = usable(tuple(points), form, axis)
    chosen = _choice(spec, kept, axis)
    fit = fit_law([point for point in kept if not chosen(point)], form, axis=axis, residuals=residuals)
    held = _held(kept, chosen, axis)
    start = held.loss_init if FORMS[form].bounded else None
    low, high = fit.interval(held.size, held.length, level=_LEVEL, loss_init=start)
    inside = [(low[i] <= runs) & (runs <= high[i]) for i, runs in enumerate(held.runs)]
    predicted = fit.predict(held.size, held.length, loss_init=start)
    return Holdout(spec, len(held.size), mean_error(held.delta, predicted), float(np.concatenate(inside).mean()))


def _choice(spec: str, points: Sequence[LawPoint], axis: Axis) -> Choice:
    """Whether a point is held out; MAX is that of `points`, and means it and whatever is beyond."""
    if spec == _CORNER:
        name, chosen = "length", _corner(points, axis)
    else:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise ConfigError(
                f"Cannot hold out {spec!r}. Write length=MAX, rank=MAX, corner=MAX, length=2000 or rank>=12."
            )
        name, relation, value = match.groups()
        chosen = _on_one_axis(points, name, relation, value)
    out = [chosen(point) for point in points]
    if all(out) or not any(out):
        seen = ", ".join(f"{at:g}" for at in sorted({getattr(point, name) for point in points})) or "none"
        raise ConfigError(
            f"{spec} holds out {'every' if any(out) else 'no'} usable cell. Cells have {name} {seen}: name some "
            "of these, and leave at least two others to fit."
        )
    return chosen


def _corner(points: Sequence[LawPoint], axis: Axis) -> Choice:
    size_from = _upper_half(size_of(point, axis) for point in points)
    length_from = _upper_half(point.length for point in points)
    return lambda point: size_of(point, axis) >= size_from and point.length >= length_from


def _on_one_axis(points: Sequence[LawPoint], name: str, relation: str, value: str) -> Choice:
    if value == "MAX":
        most = max((getattr(point, name) for point in points), default=0)
        return lambda point: getattr(point, name) >= most
    if relation == ">=":
        return lambda point: getattr(point, name) >= float(value)
    return lambda point: getattr(point, name) == float(value)


def _upper_half(values: Iterable[float]) -> float:
    """The smallest of the upper half of the distinct values (without the middle one of an odd number)."""
    distinct = sorted(set(values))
    return distinct[(len(distinct) + 1) // 2] if len(distinct) > 1 else math.inf


def _held(points: Sequence[LawPoint], chosen: Choice, axis: Axis) -> Cells:
    held = [point for point in points if chosen(point)]
    return cells_of(held, axis, loss_table(held))


@dataclass(frozen=True)
class Comparison:
    """All forms of the law, judged on the same cells: those that every form in question can use."""

    fits: tuple[LawFit, ...]
    """Every form, the best first."""
    why: str
    """Why the best is the best."""
    cells: int
    holdouts: tuple[str, ...]
    """Which of the standard hold-outs could be made."""
    mape: dict[Form, float]
    """Mean error on held-out cells, percent: the mean over the hold-outs; of each form that could be judged."""
    r2: dict[Form, float]
    """Of dL on the shared cells."""
    aicc: dict[Form, float]
    """Akaike's criterion with its small-sample term on the shared cells; 2 or less is no difference."""

    @property
    def best(self) -> LawFit:
        return self.fits[0]

    @property
    def best_to_plan(self) -> LawFit:
        """The best form that knows a ceiling, if one can be believed: recall is asked for close to it, where forms
        without one promise what cannot be."""
        ceilings = (fit for fit in self.fits if fit.curve.bounded and fit.status == "ok")
        return next(ceilings, self.best)


def compare(
    points: Iterable[LawPoint],
    *,
    axis: Axis = "rank",
    residuals: Residuals = "absolute",
    source: str = "the points given",
) -> Comparison:
    """Fit every form and say which to use.

    A form that can be believed (status ok) before one that cannot; then the lower error on held-out cells, the mean
    over the standard hold-outs; where two errors differ by less than one standard error of their difference, the lower
    AICc. Held-out cells are unsaturated ones, on which all forms are judged, but the bounded form has to follow the
    saturated ones too: if it wins, it wins with that handicap.

    Raises FitError where no form can be fitted.
    """
    points = tuple(points)
    fits = {form: fit_law(points, form, axis=axis, residuals=residuals, source=source) for form in FORMS}
    fitted = [form for form, fit in fits.items() if fit.parameters]
    if not fitted:
        raise FitError(f"No form of the law can be fitted. {fits['paper'].status}")
    believed = [form for form in fitted if fits[form].status == "ok"]
    shared = usable(points, "paper", axis)
    for form in believed or fitted:
        if FORMS[form].bounded:
            shared = usable(shared, form, axis)
    misses = _holdout_errors(points, shared, believed or fitted, axis, residuals)
    scores = {form: score for form in fitted if (score := _scores(fits[form], shared)) is not None}
    aicc = {form: score[1] for form, score in scores.items()}
    ranked = _ranked(believed, misses, aicc) + _ranked([form for form in fitted if form not in believed], misses, aicc)
    rest = [form for form in fits if form not in ranked]
    return Comparison(
        fits=tuple(fits[form] for form in (*ranked, *rest)),
        why=_why(ranked, believed, misses, aicc, fits),
        cells=len(cells_of(shared, axis, ()).size) if shared else 0,
        holdouts=tuple(misses),
        mape={form: _mean_error(misses, form) for form in (believed or fitted) if misses},
        r2={form: score[0] for form, score in scores.items()},
        aicc=aicc,
    )


Errors = dict[str, dict[Form, Array]]
"""Hold-out -> form -> |predicted / measured - 1| in percent of each cell held out."""


def _holdout_errors(
    points: Sequence[LawPoint], shared: Sequence[LawPoint], forms: Sequence[Form], axis: Axis, residuals: Residuals
) -> Errors:
    """Of the standard hold-outs that can be made: that name a cell, and leave each form enough to be fitted to."""
    misses: Errors = {}
    for spec in STANDARD_HOLDOUTS:
        try:
            chosen = _choice(spec, shared, axis)
        except ConfigError:
            continue
        held = _held(shared, chosen, axis)
        found: dict[Form, Array] = {}
        for form in forms:
            rest = [point for point in usable(points, form, axis) if not chosen(point)]
            fit = fit_law(rest, form, axis=axis, residuals=residuals) if rest else None
            if fit is None or not fit.parameters:
                break
            start = held.loss_init if FORMS[form].bounded else None
            found[form] = errors(held.delta, fit.predict(held.size, held.length, loss_init=start))
        if len(found) == len(forms) and all(error.size for error in found.values()):
            misses[spec] = found
    return misses


def _mean_error(misses: Errors, form: Form) -> float:
    return float(np.mean([found[form].mean() for found in misses.values()]))


def _margin(misses: Errors, one: Form, other: Form) -> float:
    """Standard error of the difference of two mean errors, cell by cell."""
    differences = [found[one] - found[other] for found in misses.values()]
    variances = [each.var(ddof=1) / each.size if each.size > 1 else math.inf for each in differences]
    return math.sqrt(sum(variances)) / len(differences)


def _ranked(forms: Sequence[Form], misses: Errors, aicc: Mapping[Form, float]) -> list[Form]:
    """The best first: of those whose error is the least, or not worse by more than the margin, that of lowest AICc."""
    left, ranked = list(forms), []
    while left:
        alike = left
        if misses and all(form in found for found in misses.values() for form in left):
            least = min(left, key=lambda form: _mean_error(misses, form))
            alike = [form for form in left if form == least or _alike(misses, form, least)]
        best = min(alike, key=lambda form: (aicc.get(form, math.inf), len(FORMS[form].names)))
        ranked.append(best)
        left = [form for form in left if form != best]
    return ranked


def _alike(misses: Errors, form: Form, least: Form) -> bool:
    return _mean_error(misses, form) - _mean_error(misses, least) < _margin(misses, form, least)


def _scores(fit: LawFit, points: Sequence[LawPoint]) -> tuple[float, float] | None:
    """R^2 of dL, and AICc = m ln(SSE/m) + 2k + 2k(k+1)/(m-k-1) of the residuals on m cells, k the parameters and sigma;
    None where the cells are too few for it."""
    seen = points_for_form(fit.form, points)
    cells = cells_of(seen, fit.axis, loss_table(seen))
    m, k = len(cells.size), len(fit.parameters) + 1
    if m <= k + 1:
        return None
    residual = problem_of(cells, fit.curve, SCALES[fit.residuals]).residual(fit.theta)
    squares = max(float(residual @ residual), np.finfo(float).tiny)
    return quality(fit, points)[0], m * math.log(squares / m) + 2 * k + 2 * k * (k + 1) / (m - k - 1)


def _why(
    ranked: Sequence[Form],
    believed: Sequence[Form],
    misses: Errors,
    aicc: Mapping[Form, float],
    fits: Mapping[Form, LawFit],
) -> str:
    best = ranked[0]
    rivals = [form for form in ranked[1:] if form in believed or not believed]
    if not rivals and believed:
        other = next(form for form in fits if form != best)
        return f"Only the {best} form can be believed here. The {other} form: {fits[other].status}"
    said = "" if believed else "No form can be believed here. "
    if not rivals:
        return f"{said}Only the {best} form has numbers."
    other = rivals[0]
    lead = aicc.get(other, math.nan) - aicc.get(best, math.nan)
    if misses:
        without = f"Fitted without {', '.join(misses)}, "
        mine, theirs = (f"{_mean_error(misses, form):.2g}%" for form in (best, other))
        if not (_alike(misses, other, best) and lead > 0):
            return f"{said}{without}the {best} form misses the cells left out by {mine}, the {other} form by {theirs}."
        said += f"{without}the {best} and {other} forms miss the cells left out about alike ({mine} and {theirs}). "
    if lead > 0:
        return f"{said}The {best} form has the lower AICc on the cells that all forms use, by {lead:.1f}."
    return f"{said}Too few cells tell the forms apart; the {best} form has no more parameters than the others."
