"""Is the law right where it was not fitted? Hold-out errors, and one form against the other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memlaw.errors import ConfigError, FitError
from memlaw.law.curve import PARAMETERS, Form
from memlaw.law.fit import fit_law, mape, r2, size_of, usable
from memlaw.law.record import Axis, Holdout, LawFit
from memlaw.records import LawPoint

_SPEC = re.compile(r"(rank|length)(=|>=)(MAX|\d+)")
_LEVEL = 0.9


def holdout(
    points: Iterable[LawPoint], form: Form = "paper", spec: str = "length=MAX", *, axis: Axis = "rank"
) -> Holdout:
    """Fit without the cells that `spec` names, predict them: `length=MAX`, `rank=MAX`, `length=2000`, `rank>=12`.

    Held-out cells bring their own L_init, which costs no training to measure. The paper's form is judged on
    unsaturated cells only. Raises ConfigError for a spec of another shape or that names no cell, FitError where the
    remaining cells give no law with error bars.
    """
    cells = usable(tuple(points), form)
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ConfigError(f"Cannot hold out {spec!r}. Write length=MAX, rank=MAX, length=2000 or rank>=12.")
    name, relation, value = match.groups()
    measured = np.array([getattr(point, name) for point in cells], dtype=float)
    border = measured.max(initial=0) if value == "MAX" else float(value)
    outside = measured >= border if relation == ">=" else measured == border
    if outside.all() or not outside.any():
        seen = ", ".join(f"{at:g}" for at in np.unique(measured)) or "none"
        raise ConfigError(
            f"{spec} holds out {'every' if outside.any() else 'no'} usable cell. Cells have {name} {seen}: name some "
            "of these, and leave at least two others to fit."
        )
    fit = fit_law([point for point, out in zip(cells, outside, strict=True) if not out], form, axis=axis)
    held = [point for point, out in zip(cells, outside, strict=True) if out]
    sizes, lengths, delta = (
        np.array(column, dtype=float)
        for column in zip(*((size_of(p, axis), p.length, p.delta_loss) for p in held), strict=True)
    )
    loss_init = None if form == "paper" else np.array([point.loss_init for point in held], dtype=float)
    low, high = fit.interval(sizes, lengths, level=_LEVEL, loss_init=loss_init)
    inside = (low <= delta) & (delta <= high)
    predicted = fit.predict(sizes, lengths, loss_init=loss_init)
    return Holdout(spec, len(held), mape(delta, predicted), float(inside.mean()))


@dataclass(frozen=True)
class Comparison:
    """Both forms of the law, judged on the same cells: the unsaturated ones, which both forms have seen."""

    paper: LawFit
    bounded: LawFit
    cells: int
    r2: dict[Form, float]
    """Of each form that could be fitted, on those cells."""
    aicc: dict[Form, float]
    """Akaike's criterion with its small-sample term; lower is better, and 2 or less is no difference."""
    better: Form
    why: str

    @property
    def fits(self) -> tuple[LawFit, LawFit]:
        """Both, the better one first."""
        return (self.bounded, self.paper) if self.better == "bounded" else (self.paper, self.bounded)

    @property
    def best(self) -> LawFit:
        return self.fits[0]


def compare(points: Iterable[LawPoint], *, axis: Axis = "rank", source: str = "the points given") -> Comparison:
    """Fit both forms and say which to use: a form that can be believed before one that cannot, then the lower AICc.

    The bounded form also has to follow the saturated cells, which the paper's leaves out: if it wins on the shared
    cells, it wins with that handicap.
    """
    points = tuple(points)
    fits: dict[Form, LawFit] = {form: fit_law(points, form, axis=axis, source=source) for form in PARAMETERS}
    fitted: list[Form] = [form for form, fit in fits.items() if fit.parameters]
    if not fitted:
        raise FitError(f"Neither form can be fitted. {fits['paper'].status}")
    shared = usable(points, "paper")
    if "bounded" in fitted:
        shared = usable(shared, "bounded")
    scores = {form: _scores(fits[form], shared) for form in fitted if len(shared) > len(PARAMETERS[form]) + 2}
    aicc = {form: score[1] for form, score in scores.items()}
    better = min(fitted, key=lambda form: (fits[form].status != "ok", aicc.get(form, math.inf)))
    return Comparison(
        fits["paper"],
        fits["bounded"],
        len(shared),
        {form: score[0] for form, score in scores.items()},
        aicc,
        better,
        _why(better, fits, aicc),
    )


def _scores(fit: LawFit, cells: Sequence[LawPoint]) -> tuple[float, float]:
    """R^2 and AICc = m ln(SSE/m) + 2k + 2k(k+1)/(m-k-1) of a fit on m cells, k its parameters and sigma."""
    delta = np.array([point.delta_loss for point in cells])
    sizes = np.array([size_of(point, fit.axis) for point in cells], dtype=float)
    residual = delta - fit.predict(sizes, np.array([point.length for point in cells], dtype=float))
    m, k = len(cells), len(fit.parameters) + 1
    squares = max(float(residual @ residual), np.finfo(float).tiny)
    return r2(delta, residual), m * math.log(squares / m) + 2 * k + 2 * k * (k + 1) / (m - k - 1)


def _why(better: Form, fits: Mapping[Form, LawFit], aicc: Mapping[Form, float]) -> str:
    other: Form = "paper" if better == "bounded" else "bounded"
    if fits[other].status != "ok":
        return f"The {other} form cannot be relied on here. {fits[other].status}"
    if len(aicc) < 2:
        return f"Too few cells are unsaturated to compare the forms; the {better} form could be fitted."
    lead = aicc[other] - aicc[better]
    return f"On the cells both forms have seen, the {better} form has the lower AICc, by {lead:.1f}."
