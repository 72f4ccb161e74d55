"""Does the law hold on cells it was not fitted to? Hold-out errors, and a comparison of the forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memlaw.core.errors import ConfigError, FitError
from memlaw.core.points import LawPoint
from memlaw.law.curve import FORMS, Form
from memlaw.law.fit import fit_law, mean_error, percent_errors, quality
from memlaw.law.growth import Array
from memlaw.law.messages import IMPOSSIBLE
from memlaw.law.points import Axis, Cells, cells_of, loss_table, points_for_form, size_of, usable
from memlaw.law.residuals import SCALES, Residuals
from memlaw.law.result import Holdout, LawFit
from memlaw.law.search import problem_of

STANDARD_HOLDOUTS = ("length=MAX", "rank=MAX", "corner=MAX")
"""Hold-outs that compare the forms: a plan extrapolates to longer texts, to higher ranks, and to both."""

_SPEC = re.compile(r"(rank|length)(=|>=)(MAX|\d{1,15})")

_CORNER = "corner=MAX"

_LEVEL = 0.9

Selection = Callable[[LawPoint], bool]


def holdout(
    points: Iterable[LawPoint],
    form: Form = "paper",
    spec: str = "length=MAX",
    *,
    axis: Axis = "rank",
    residuals: Residuals = "absolute",
) -> Holdout:
    """Fit without the cells selected by `spec`, and compare predictions with them.

    `length=MAX` and `rank=MAX` select the largest, `length=2000` and `rank>=12` others. `corner=MAX` selects cells in
    the upper half of both sizes and lengths: the fit then sees every size and length, but no large adapter with a long
    text. Held-out cells keep their own L_init, which takes no training to measure. Forms without a bound are judged on
    unsaturated cells only.

    Raises ConfigError for a spec that cannot be read or selects no cell or every cell, FitError if the remaining cells
    give no law with error bars.
    """
    kept = usable(tuple(points), form, axis)
    held_out = _selection(spec, kept, axis)
    fit = fit_law([point for point in kept if not held_out(point)], form, axis=axis, residuals=residuals)
    held = _held_out_cells(kept, held_out, axis)
    start = held.loss_init if FORMS[form].bounded else None
    low, high = fit.interval(held.size, held.length, level=_LEVEL, loss_init=start)
    inside = [(low[i] <= runs) & (runs <= high[i]) for i, runs in enumerate(held.runs)]
    predicted = fit.predict(held.size, held.length, loss_init=start)
    return Holdout(spec, len(held.size), mean_error(held.delta, predicted), float(np.concatenate(inside).mean()))


def _selection(spec: str, points: Sequence[LawPoint], axis: Axis) -> Selection:
    """The predicate of `spec`. MAX is the maximum over `points`, and also selects anything larger."""
    if spec == _CORNER:
        name, selection = "length", _corner(points, axis)
    else:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise ConfigError(
                f"Cannot hold out {spec!r}. Write length=MAX, rank=MAX, corner=MAX, length=2000 or rank>=12."
            )
        name, relation, value = match.groups()
        selection = _on_one_axis(points, name, relation, value)
    selected = [selection(point) for point in points]
    if all(selected) or not any(selected):
        values = ", ".join(f"{at:g}" for at in sorted({getattr(point, name) for point in points})) or "none"
        raise ConfigError(
            f"{spec} holds out {'every' if any(selected) else 'no'} usable cell. The cells have {name} {values}: "
            "select some of these, and leave at least two others to fit."
        )
    return selection


def _corner(points: Sequence[LawPoint], axis: Axis) -> Selection:
    size_from = _upper_half(size_of(point, axis) for point in points)
    length_from = _upper_half(point.length for point in points)
    return lambda point: size_of(point, axis) >= size_from and point.length >= length_from


def _on_one_axis(points: Sequence[LawPoint], name: str, relation: str, value: str) -> Selection:
    if value == "MAX":
        most = max((getattr(point, name) for point in points), default=0)
        return lambda point: getattr(point, name) >= most
    if relation == ">=":
        return lambda point: getattr(point, name) >= float(value)
    return lambda point: getattr(point, name) == float(value)


def _upper_half(values: Iterable[float]) -> float:
    """The smallest value of the upper half of the distinct values; the middle one of an odd number is not in it."""
    distinct = sorted(set(values))
    return distinct[(len(distinct) + 1) // 2] if len(distinct) > 1 else math.inf


def _held_out_cells(points: Sequence[LawPoint], selection: Selection, axis: Axis) -> Cells:
    held = [point for point in points if selection(point)]
    return cells_of(held, axis, loss_table(held))


@dataclass(frozen=True)
class Comparison:
    """All forms of the law, compared on the same cells: those that every form can use."""

    fits: tuple[LawFit, ...]
    """All forms, best first."""
    why: str
    """Why the first form is best, in sentences."""
    cells: int
    """Number of cells compared on."""
    holdouts: tuple[str, ...]
    """The standard hold-outs that were possible."""
    mape: dict[Form, float]
    """Mean error on held-out cells in percent, averaged over the hold-outs, for each form that was compared."""
    r2: dict[Form, float]
    """R^2 of dL on the shared cells."""
    aicc: dict[Form, float]
    """Akaike's criterion with small-sample correction on the shared cells; differences below 2 mean nothing."""

    @property
    def best(self) -> LawFit:
        return self.fits[0]

    @property
    def best_to_plan(self) -> LawFit:
        """The best bounded form with status ok, otherwise the best form.

        Recall needs losses close to the bound, where forms without one predict more than can be learned.
        """
        bounded = (fit for fit in self.fits if fit.curve.bounded and fit.status == "ok")
        return next(bounded, self.best)


def compare(
    points: Iterable[LawPoint],
    *,
    axis: Axis = "rank",
    residuals: Residuals = "absolute",
    source: str = "the points given",
) -> Comparison:
    """Fit every form and rank them.

    A form that predicts, for one of these cells, a fall of the loss below 0 comes after all that do not. Of either
    kind, forms with status ok come first. Among them the lower error on held-out cells wins, averaged over the standard
    hold-outs; if two errors differ by less than one standard error of their difference, the lower AICc wins. All forms
    are judged on unsaturated held-out cells, although the bounded ones also have to fit the saturated cells.

    Raises FitError if no form can be fitted.
    """
    points = tuple(points)
    fits = {form: fit_law(points, form, axis=axis, residuals=residuals, source=source) for form in FORMS}
    fitted = [form for form, fit in fits.items() if fit.parameters]
    if not fitted:
        raise FitError(f"No form of the law can be fitted. {fits['paper'].status}")
    trusted = [form for form in fitted if fits[form].status == "ok"]
    shared = usable(points, "paper", axis)
    for form in trusted or fitted:
        if FORMS[form].bounded:
            shared = usable(shared, form, axis)
    misses = _holdout_errors(points, shared, trusted or fitted, axis, residuals)
    scores = {form: score for form in fitted if (score := _scores(fits[form], shared)) is not None}
    aicc = {form: score[1] for form, score in scores.items()}
    excesses = {form: excess for form in fitted if (excess := _excess(fits[form], points)) is not None}
    groups = [
        [form for form in fitted if (form in excesses, form in trusted) == kind]
        for kind in ((False, True), (False, False), (True, True), (True, False))
    ]
    ranked = [form for group in groups for form in _ranked(group, misses, aicc)]
    if ranked[0] in trusted:
        why = _why(ranked, trusted, misses, aicc, fits)
    else:
        why = _why([form for form in ranked if form not in excesses] or ranked, (), misses, aicc, fits)
    first = _ranked(trusted or fitted, misses, aicc)[0]
    rest = [form for form in fits if form not in ranked]
    return Comparison(
        fits=tuple(fits[form] for form in (*ranked, *rest)),
        why=f"{why} {excesses[first]}" if first in excesses else why,
        cells=len(cells_of(shared, axis, ()).size) if shared else 0,
        holdouts=tuple(misses),
        mape={form: _mean_error(misses, form) for form in (trusted or fitted) if misses},
        r2={form: score[0] for form, score in scores.items()},
        aicc=aicc,
    )


def _excess(fit: LawFit, points: Sequence[LawPoint]) -> str | None:
    """Where the law predicts that the loss falls below 0, at the cell where it does so most; None if nowhere."""
    known = [point for point in points if point.loss_init is not None]
    if not known or fit.curve.bounded:
        return None
    size = np.array([size_of(point, fit.axis) for point in known])
    length, start = (np.array([getattr(point, name) for point in known]) for name in ("length", "loss_init"))
    predicted = fit.predict(size, length)
    worst = int(np.argmax(predicted - start))
    if predicted[worst] <= start[worst]:
        return None
    return IMPOSSIBLE.format(
        form=fit.form,
        delta=predicted[worst],
        axis="rank" if fit.axis == "rank" else "size",
        size=size[worst],
        length=length[worst],
        start=start[worst],
    )


Errors = dict[str, dict[Form, Array]]
"""Hold-out -> form -> |predicted / measured - 1| in percent, for each held-out cell."""


def _holdout_errors(
    points: Sequence[LawPoint], shared: Sequence[LawPoint], forms: Sequence[Form], axis: Axis, residuals: Residuals
) -> Errors:
    """The errors of every form, for the standard hold-outs that select a cell and leave enough cells for every fit."""
    misses: Errors = {}
    for spec in STANDARD_HOLDOUTS:
        try:
            selection = _selection(spec, shared, axis)
        except ConfigError:
            continue
        held = _held_out_cells(shared, selection, axis)
        by_form: dict[Form, Array] = {}
        for form in forms:
            rest = [point for point in usable(points, form, axis) if not selection(point)]
            fit = fit_law(rest, form, axis=axis, residuals=residuals) if rest else None
            if fit is None or not fit.parameters:
                break
            start = held.loss_init if FORMS[form].bounded else None
            by_form[form] = percent_errors(held.delta, fit.predict(held.size, held.length, loss_init=start))
        if len(by_form) == len(forms) and all(error.size for error in by_form.values()):
            misses[spec] = by_form
    return misses


def _mean_error(misses: Errors, form: Form) -> float:
    return float(np.mean([by_form[form].mean() for by_form in misses.values()]))


def _margin(misses: Errors, one: Form, other: Form) -> float:
    """Standard error of the difference between two mean errors, paired by cell."""
    differences = [by_form[one] - by_form[other] for by_form in misses.values()]
    variances = [each.var(ddof=1) / each.size if each.size > 1 else math.inf for each in differences]
    return math.sqrt(sum(variances)) / len(differences)


def _ranked(forms: Sequence[Form], misses: Errors, aicc: Mapping[Form, float]) -> list[Form]:
    """Best first: of the forms whose error is the lowest, or within the margin of it, the one with the lowest AICc."""
    left, ranked = list(forms), []
    while left:
        similar = left
        if misses and all(form in by_form for by_form in misses.values() for form in left):
            least = min(left, key=lambda form: _mean_error(misses, form))
            similar = [form for form in left if form == least or _within_margin(misses, form, least)]
        best = min(similar, key=lambda form: (aicc.get(form, math.inf), len(FORMS[form].names)))
        ranked.append(best)
        left = [form for form in left if form != best]
    return ranked


def _within_margin(misses: Errors, form: Form, least: Form) -> bool:
    return _mean_error(misses, form) - _mean_error(misses, least) < _margin(misses, form, least)


def _scores(fit: LawFit, points: Sequence[LawPoint]) -> tuple[float, float] | None:
    """R^2 of dL, and AICc = m ln(SSE / m) + 2k + 2k (k + 1) / (m - k - 1) of the residuals on m cells.

    k counts the parameters and sigma. None if there are too few cells.
    """
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
    trusted: Sequence[Form],
    misses: Errors,
    aicc: Mapping[Form, float],
    fits: Mapping[Form, LawFit],
) -> str:
    best = ranked[0]
    rivals = [form for form in ranked[1:] if form in trusted or not trusted]
    if not rivals and trusted:
        doubted = [form for form in fits if form != best and fits[form].status != "ok"]
        why = f" The {doubted[0]} form: {fits[doubted[0]].status}" if doubted else ""
        return f"Only the {best} form can be trusted here.{why}"
    why = "" if trusted else "No form can be trusted here. "
    if not rivals:
        return f"{why}Only the {best} form is left."
    other = rivals[0]
    lead = aicc.get(other, math.nan) - aicc.get(best, math.nan)
    # A form that predicts more than the loss there was can be next in rank without having been held against cells.
    misses = {spec: by_form for spec, by_form in misses.items() if best in by_form and other in by_form}
    if misses:
        without = f"Fitted without {', '.join(misses)}, "
        lower, higher = (f"{_mean_error(misses, form):.2g}%" for form in (best, other))
        if not (_within_margin(misses, other, best) and lead > 0):
            return (
                f"{why}{without}the {best} form predicts the held-out cells with a mean error of {lower}, the {other} "
                f"form with {higher}."
            )
        why += (
            f"{without}the {best} and {other} forms predict the held-out cells about equally well (mean errors {lower} "
            f"and {higher}). "
        )
    if lead > 0:
        return f"{why}The {best} form has the lower AICc on the cells that all forms use, by {lead:.1f}."
    return f"{why}There are too few cells to tell the forms apart; the {best} form has the fewest parameters."
