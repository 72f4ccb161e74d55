"""Will it fit? Which rank a memory set needs, how certain that is, and what it costs. No torch.

A plan is computed from numbers that need no training: how many records and target tokens there are, the base's own loss
on them, and where the adapter would sit. See `recall_loss.py` for the loss that recall needs, `sizes.py` for what is
uncertain, `planner.py` for the answer, `result.py` for its parts, and `library.py` for the choice of a law.
"""

from memlaw.planning.library import BORROWED, BORROWED_FACTOR, KnownLaw, default_law
from memlaw.planning.planner import AdapterPlacement, plan
from memlaw.planning.recall_loss import CellRecall, RecallCurve, recall_curve
from memlaw.planning.request import MeasuredSet, PlanRequest
from memlaw.planning.result import Capacity, Cost, Plan, RankChance, RankRange, TrainingWork
from memlaw.planning.sizes import DRIFT
from memlaw.planning.target import Target

__all__ = [
    "BORROWED",
    "BORROWED_FACTOR",
    "DRIFT",
    "AdapterPlacement",
    "Capacity",
    "CellRecall",
    "Cost",
    "KnownLaw",
    "MeasuredSet",
    "Plan",
    "PlanRequest",
    "RankChance",
    "RankRange",
    "RecallCurve",
    "Target",
    "TrainingWork",
    "default_law",
    "plan",
    "recall_curve",
]
