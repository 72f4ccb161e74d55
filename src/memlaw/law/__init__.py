"""The Parametric Memory Law: fit it, quantify its uncertainty, invert it. numpy and scipy only.

    paper     dL = C r^alpha l^-beta + b                                        arXiv 2605.30260
    power     dL = C r^alpha l^-beta
    log       dL = a + k (ln r - q ln l)                                        their limit alpha -> 0
    bounded   dL = L (1 + (u/L)^-n)^(-1/n),  u = C r^alpha l^-beta + b          memlaw's own; L = L_init(l)
    memory    dL = L - L' + L' (1 + (u/L')^-n)^(-1/n),  u = C r^alpha l^-beta   the same with b known: L' = L_init'(l)

dL in nats per target token, r a LoRA rank (or the adapter's parameters), l in target tokens. See `growth.py` and
`curve.py` for the mathematics, `fit.py` for the fit and its status, `intervals.py` for its uncertainty, `result.py` for
predictions and the inverse, `comparison.py` for tests on held-out cells, `transfer.py` for other data and models.
"""

from memlaw.law.comparison import Comparison, compare, holdout
from memlaw.law.curve import FORMS, Form
from memlaw.law.fit import fit_law
from memlaw.law.points import SATURATED, Axis, size_of
from memlaw.law.reading import points_from_results, points_from_text, read_points
from memlaw.law.residuals import SCALES, Residuals
from memlaw.law.result import Holdout, Intervals, LawFit, Origin
from memlaw.law.transfer import borrow, calibrate, over_parameters

__all__ = [
    "FORMS",
    "SATURATED",
    "SCALES",
    "Axis",
    "Comparison",
    "Form",
    "Holdout",
    "Intervals",
    "LawFit",
    "Origin",
    "Residuals",
    "borrow",
    "calibrate",
    "compare",
    "fit_law",
    "holdout",
    "over_parameters",
    "points_from_results",
    "points_from_text",
    "read_points",
    "size_of",
]
