"""The Parametric Memory Law: fit it, doubt it, turn it round. numpy and scipy only.

    paper     dL = C r^alpha l^-beta + b                                        arXiv 2605.30260
    bounded   dL = L (1 + (u/L)^-n)^(-1/n),  u = C r^alpha l^-beta + b          memlaw's own; L = L_init(l)

dL in nats per target token, r a LoRA rank (or the adapter's parameters), l in target tokens. Read `curve.py` for the
mathematics, `record.py` for what a fit tells, `fit.py` for when it is believed, `judge.py` for tests on unseen cells.
"""

from memlaw.law.curve import Form
from memlaw.law.fit import borrow, calibrate, fit_law
from memlaw.law.judge import Comparison, compare, holdout
from memlaw.law.points import SATURATED, points_from_results, points_from_text, read_points
from memlaw.law.record import Axis, Holdout, LawFit

__all__ = [
    "SATURATED",
    "Axis",
    "Comparison",
    "Form",
    "Holdout",
    "LawFit",
    "borrow",
    "calibrate",
    "compare",
    "fit_law",
    "holdout",
    "points_from_results",
    "points_from_text",
    "read_points",
]
