"""A probe with a time budget: which cells sharpen a plan fastest, and when the plan is sharp enough.

A pack scores the reduction of the variance of ln size at the planned set, by the law as known so far (c-optimal
design), per second of its expected training time.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memlaw.core.cells import CellResult
from memlaw.core.errors import ConfigError, FitError
from memlaw.core.facts import EncodedFact
from memlaw.core.points import LawPoint
from memlaw.data import target_tokens
from memlaw.law import FORMS, compare, fit_law, points_from_results
from memlaw.law.bits import memoryless_loss
from memlaw.law.growth import Array
from memlaw.planning import DRIFT, AdapterPlacement, KnownLaw, MeasuredSet, Plan, plan, recall_curve
from memlaw.sweep.laws import cell_recalls
from memlaw.sweep.pack import Pack

if TYPE_CHECKING:
    from memlaw.core.facts import MemorySet
    from memlaw.model.base import Base
    from memlaw.sweep.config import ProbeConfig

NARROW = 2.0
"""A plan is sharp enough once the ends of its rank's 95% interval differ by this factor or less."""

RANKS = (1, 2, 4, 8, 16, 32, 64)

SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Lengths that a budgeted probe chooses from, as shares of the whole set."""

_CURVE = FORMS["memory"]

_PRIOR_DEVIATION = np.array([1.0, 0.3, 0.3, 0.5])
"""Standard deviations of (ln C, alpha, beta, ln n) before any cell: the spread over models from 2 million to 8 billion
parameters."""

_PRIOR_EXPONENTS = (0.75, 0.5, math.log(5))

_SIGMA = 0.1
"""Scatter of a cell in nats, until the cells themselves tell."""

_STEP = 1e-4


@dataclass(frozen=True)
class Goal:
    """The set to plan for."""

    records: int
    tokens: int
    """Target tokens."""
    loss_init: float
    loss_memoryless: float
    placement: AdapterPlacement

    @classmethod
    def measured(cls, base: Base, facts: Sequence[EncodedFact], placement: AdapterPlacement) -> Goal:
        """The goal to store all of these facts, with the loss of the base on them."""
        from memlaw.diagnosis.measure import measure
        from memlaw.model.outline_from_module import outline_of_model

        loss_init = measure(base, facts, decode=False).mean_loss
        vocabulary = outline_of_model(base.model).vocabulary
        memoryless = memoryless_loss((fact.target for fact in facts), loss_init, vocabulary)
        return cls(len(facts), target_tokens(facts), loss_init, memoryless, placement)


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `10m` or `2h` in seconds. Raises ConfigError."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"The budget {text!r} is not a duration. Write it as 90s, 10m or 2h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def candidate_axes(facts: Sequence[EncodedFact], placement: AdapterPlacement) -> dict[str, list[int]]:
    """Ranks and lengths to choose from: all that the placement allows, and shares of the set of one record or more."""
    tokens, shortest = target_tokens(facts), 1 if len(facts) == 1 else facts[0].length
    return {
        "ranks": [rank for rank in RANKS if rank <= placement.max_rank],
        "lengths": sorted({max(shortest, round(share * tokens)) for share in SHARES}),
    }


class Budget:
    """A `PackChooser` that picks packs until the time is up or the plan is sharp.

    It never starts a pack that should take longer than the time left. The first pack is the cheapest, which tells the
    speed of this machine.
    """

    def __init__(self, seconds: float, goal: Goal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.goal, self._clock = seconds, goal, clock
        self._begun: list[tuple[float, float]] = []
        """(start, cost) of each chosen pack."""
        self._start = clock()
        self.why = ""
        """Why it stopped."""

    def __call__(self, packs: Sequence[Pack], results: Sequence[CellResult]) -> Pack | None:
        points = points_from_results(results)
        if self._sharp(points, results):
            return None
        rate, left = self._rate(), self.seconds - (self._clock() - self._start)
        affordable = [pack for pack in packs if (rate or 0.0) * _cost(pack) <= left]
        if left <= 0 or not affordable:
            self.why = f"The budget of {self.seconds:,.0f} s is used up, or too short for any of the other cells."
            return None
        if rate is None:
            chosen = min(affordable, key=_cost)
        else:
            belief = _Belief(self.goal, points)
            chosen = max(affordable, key=lambda pack: belief.gain(pack) / _cost(pack))
        self._begun.append((self._clock(), _cost(chosen)))
        return chosen

    def _rate(self) -> float | None:
        """Seconds per unit of cost so far; None before the first pack has finished."""
        if not self._begun:
            return None
        times = [start for start, _ in self._begun] + [self._clock()]
        return sum(later - earlier for earlier, later in pairwise(times)) / sum(cost for _, cost in self._begun)

    def _sharp(self, points: Sequence[LawPoint], results: Sequence[CellResult]) -> bool:
        current = plan_by_cells(self.goal, points, results)
        if current is None or current.rank.low is None or current.rank.high is None or current.rank.value is None:
            return False
        if current.rank.high > NARROW * current.rank.low:
            return False
        self.why = (
            f"The plan is sharp enough: rank {current.rank.value} (95%: {current.rank.low} to {current.rank.high})."
        )
        return True


def plan_by_cells(goal: Goal, points: Sequence[LawPoint], results: Sequence[CellResult]) -> Plan | None:
    """The plan by the law of these cells; None if no reliable law can be fitted to them."""
    try:
        law = compare(points).best_to_plan if points else None
    except FitError:
        return None
    if law is None or law.status != "ok":
        return None
    facts = MeasuredSet(
        records=goal.records, tokens=goal.tokens, loss_init=goal.loss_init, loss_memoryless=goal.loss_memoryless
    )
    return plan(KnownLaw(law, cell_recalls(results)), facts, goal.placement)


def _cost(pack: Pack) -> float:
    """Target tokens that its training passes through, all adapters together."""
    return float(sum(cell.length * cell.train.steps for cell in pack))


class _Belief:
    """The law as far as some cells determine it, and what others would add."""

    def __init__(self, goal: Goal, points: Sequence[LawPoint]) -> None:
        self.level, self.tokens = goal.loss_memoryless, goal.tokens
        self.longest = max((point.length for point in points), default=1.0)
        law = fit_law(points, "memory") if points else None
        if law is not None and law.covariance is not None:
            self.theta, self.sigma = law.theta, law.sigma or _SIGMA
            self.information = np.linalg.pinv(np.array(law.covariance))
        else:
            self.theta, self.sigma = _prior(goal), _SIGMA
            self.information = np.diag(_PRIOR_DEVIATION**-2.0) + self._information_of(
                [(p.rank, p.length) for p in points]
            )
        needed = float(recall_curve().loss_for(math.log(2) / goal.tokens))
        self.delta = self.level - min(needed, self.level / 2)

    def gain(self, pack: Pack) -> float:
        """Reduction of the variance of ln size at the goal by these cells."""
        more = self.information + self._information_of([(cell.rank, cell.length) for cell in pack])
        longest = max(self.longest, *(cell.length for cell in pack))
        return self._variance(self.information, self.longest) - self._variance(more, longest)

    def _variance(self, information: Array, longest: float) -> float:
        slope = self._slope
        beyond = DRIFT * math.log(max(self.tokens / longest, 1.0))
        return float(slope @ np.linalg.pinv(information) @ slope) + beyond**2

    @cached_property
    def _slope(self) -> Array:
        """d ln size / d theta at the goal, [p]."""
        steps = _STEP * np.eye(len(self.theta))
        above, below = (np.array([self._log_size(self.theta + sign * step) for step in steps]) for sign in (1, -1))
        return np.asarray((above - below) / (2 * _STEP))

    def _log_size(self, theta: Array) -> float:
        return float(np.log(_CURVE.size_for(theta, self.tokens, self.delta, self.level)))

    def _information_of(self, cells: Sequence[tuple[float, float]]) -> Array:
        """Fisher information of cells at these (rank, length), [p, p]."""
        if not cells:
            return np.zeros((len(self.theta),) * 2)
        x, y = np.log(np.array(cells, dtype=float)).T
        slopes = _CURVE.value(self.theta, x, y, np.full(len(cells), self.level))[1] / self.sigma
        return np.asarray(slopes.T @ slopes)


def _prior(goal: Goal) -> Array:
    """theta of a law by which rank 8 just holds a quarter of the set."""
    alpha, beta, log_n = _PRIOR_EXPONENTS
    log_c = math.log(goal.loss_memoryless) - alpha * math.log(8) + beta * math.log(max(goal.tokens / 4, 1))
    return np.array([log_c, alpha, beta, log_n])


def within_budget(
    base: Base, memory_set: MemorySet, seconds: float, config: Path | None, flags: dict[str, Any]
) -> tuple[ProbeConfig, Budget]:
    """The settings of the probe, by default with `candidate_axes`, and the budget that chooses. Raises ConfigError."""
    from memlaw.adapter.on_model import placement_on
    from memlaw.data import encode
    from memlaw.sweep.config import ProbeConfig

    facts = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    if config is None:
        axes = candidate_axes(facts, placement_on(flags.get("placement"), base.model))
        settings = ProbeConfig(**(axes | flags))
    else:
        settings = ProbeConfig.from_yaml(config, flags)
    if len(settings.methods) > 1:
        raise ConfigError("A budget sharpens one law, and a law holds for one method. Choose one of --methods.")
    goal = Goal.measured(base, facts, placement_on(settings.placement, base.model))
    return settings, Budget(seconds, goal)
