"""Will it fit? Which rank a memory set needs, how sure that is, and what it costs. No torch.

A plan is mathematics on numbers the caller measured without training: how many records and target tokens, the base's
own loss on them, and where the adapter would sit. Read `needed.py` for the loss that recall needs, `doubt.py` for what
is not known, `planner.py` for the answer, `answer.py` for its parts.
"""

from memlaw.planning.planner import BORROWED, BORROWED_FACTOR, AdapterPlacement, default_law, plan
from memlaw.planning.recall_loss import CellRecall, RecallCurve, recall_curve
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
    "Plan",
    "RankChance",
    "RankRange",
    "RecallCurve",
    "Target",
    "TrainingWork",
    "default_law",
    "plan",
    "recall_curve",
]
