"""The planner's uncertainty by brute force: Bayes' rule node by node, failures counted one by one, every rank tried."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from helpers import slow_law
from memlaw.core.points import LawPoint
from memlaw.planning import CellRecall, recall_loss


def mean_curve(cells: Sequence[CellRecall]) -> tuple[float, float]:
    """Mean of (ln h, ln c) under the prior times the probability of each record's outcome."""
    steps = [recall_loss._SPAN * (2 * at / (recall_loss._NODES - 1) - 1) for at in range(recall_loss._NODES)]
    total = mean_h = mean_c = 0.0
    for at_h in steps:
        for at_c in steps:
            log_h = recall_loss._LOG_H + recall_loss._LOG_H_DEVIATION * at_h
            log_c = recall_loss._LOG_C + recall_loss._LOG_C_DEVIATION * at_c
            log_p = -(at_h**2 + at_c**2) / 2
            for cell in cells:
                expected = first_errors(log_h, log_c, cell.loss_final) * cell.tokens / cell.records
                log_p -= cell.exact * expected
                if cell.exact < cell.records:
                    log_p += (cell.records - cell.exact) * math.log(-math.expm1(-max(expected, recall_loss._LEAST)))
            weight = math.exp(log_p)
            total, mean_h, mean_c = total + weight, mean_h + weight * log_h, mean_c + weight * log_c
    return mean_h / total, mean_c / total


def first_errors(log_h: float, log_c: float, loss: float) -> float:
    """h(L) = h (L / 0.4)^c, errors per token."""
    return math.exp(log_h + math.exp(log_c) * math.log(loss / 0.4))


def missed(share: float, records: int, tokens: int, rate: float) -> float:
    """Probability that more records fail, independently, than the share allows; (1 - share) * records must be whole."""
    fails = 1 - math.exp(-rate * tokens / records)
    allowed = round((1 - share) * records)
    return 1 - sum(math.comb(records, k) * fails**k * (1 - fails) ** (records - k) for k in range(allowed + 1))


def recalled_cells(
    points: Sequence[LawPoint], log_h: float, log_c: float, random: np.random.Generator, *, length: int = 10
) -> list[CellRecall]:
    """Cells whose records of `length` tokens come back at random, as h(L) says."""
    cells = []
    for point in points:
        assert point.final_loss is not None
        records, loss = max(1, round(point.length / length)), max(point.final_loss, 1e-6)
        back = math.exp(-min(first_errors(log_h, log_c, loss) * point.length / records, 700))
        cells.append(CellRecall(loss, int(random.binomial(records, back)), records, int(point.length)))
    return cells


def rank_that_recalls(
    p: dict[str, float], tokens: int, loss_init: float, log_h: float, log_c: float, *, noise: float,
    random: np.random.Generator,
) -> int:  # fmt: skip
    """The smallest rank at which one set comes back whole, given its luck and the scatter of its training."""
    luck, scatter = random.exponential(), noise * random.standard_normal()

    def comes_back(rank: int) -> bool:
        shifted = {**p, "b": p["b"] + scatter}
        loss = max(loss_init - slow_law.law(shifted, rank, tokens, loss_init), 1e-9)
        return tokens * first_errors(log_h, log_c, loss) <= luck

    return next(rank for rank in range(1, 10**6) if comes_back(rank))
