"""The size a memory set may need, by simulation: draw everything that is uncertain, and invert the law for each draw.

Uncertain are the parameters of the law (its covariance), the scatter of one training run around it, the loss that
recall needs, whether the set happens to come back at that loss, whether the law continues beyond the fitted lengths,
and the cost of data of another kind than the law's cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memlaw.law import SCALES, LawFit
from memlaw.law.growth import Array
from memlaw.planning.recall_loss import RecallCurve
from memlaw.planning.target import Target

DRIFT = 0.15
"""Standard deviation of the error of ln size per unit of ln length beyond the fitted lengths. Measured on the bundled
base: extrapolated from lengths up to 64 to 192 tokens, the rank for a loss of 0.6 to 0.15 nats was 0% to 30% too high,
0.0 to 0.2 per unit (docs/results.md)."""

TAILS = (0.025, 0.975)
"""Quantiles of a 95% interval."""

_DRAWS = 2000

# Chances of recall are stratified: this many equally spaced values, repeated over the draws.
_STRATA = 200

# 95% of a normal distribution lie within this many standard deviations.
_TWO_SIDED = 1.96


@dataclass(frozen=True)
class Sizes:
    """Sizes, in units of the law's axis, that sets of one kind of data may need to meet a target."""

    law: LawFit
    recall: RecallCurve
    target: Target
    records: int
    tokens: int
    """Target tokens of all records. Methods that take another number assume records of the same length."""
    loss_init: float
    """L_init, nats per token."""
    factor: float = 1.0
    """The law's sizes are right within this factor, either way, with probability 95%; 1 for data of the same kind."""

    def loss(self, tokens: float) -> float:
        """The mean loss in nats at which `tokens` target tokens meet the target with probability 1/2."""
        return float(self.recall.loss_for(self._rate(tokens, 0.5))) if self.target.loss is None else self.target.loss

    def point(self, tokens: float, loss: float | None = None) -> float:
        """The law's best estimate of the size at which `tokens` end at `loss` nats, by default the loss needed."""
        needed = self.loss(tokens) if loss is None else loss
        return self.law.rank_for(tokens, loss_final=min(needed, self.loss_init), loss_init=self.loss_init)

    def draws(self, tokens: float, loss: float | None = None) -> Array:
        """Sizes [draws] that may be needed instead. The random draws are the same in every call."""
        start = float(self.law.start_at(tokens, self.loss_init))
        delta = start - np.minimum(self._losses(tokens) if loss is None else loss, start)
        extra: float | Array = 0.0
        scale = SCALES[self.law.residuals]
        if scale.nats:
            # Near the ceiling dL hardly changes with u, so a run's scatter is added to u, where size can offset it.
            extra = -self._scatter
        else:
            level = np.full(_DRAWS, start)
            delta = scale.invert(scale.transform(delta, level) - self._scatter, level)
        sizes = self.law.curve.size_for(self._law_draws, tokens, delta, start, extra)
        return sizes * np.exp(self._drift * self._extrapolated(tokens) + self._kind)

    def _losses(self, tokens: float) -> float | Array:
        if self.target.loss is not None:
            return self.target.loss
        # The chances are equally spaced rather than random, because the curves they are paired with are already random.
        rates = self._rate(tokens, (np.arange(_STRATA) + 0.5) / _STRATA)
        return self.recall.loss_for(np.resize(rates, _DRAWS), self._recall_draws)

    def _rate(self, tokens: float, chance: float | Array) -> Array:
        return self.target.rate(self.records * tokens / self.tokens, tokens, chance)

    def _extrapolated(self, tokens: float) -> float:
        """Distance of ln tokens from the fitted lengths."""
        low, high = self.law.lengths
        return abs(math.log(tokens / min(max(tokens, low), high)))

    @cached_property
    def _recall_draws(self) -> Array:
        return self.recall.draws(self._random(1), _DRAWS)

    @cached_property
    def _spread(self) -> Array:
        """Factor that turns normal draws into Student's t, because sigma is itself estimated from few cells."""
        return np.sqrt(self.law.freedom / self._random(2).chisquare(self.law.freedom, _DRAWS))

    @cached_property
    def _law_draws(self) -> Array:
        drawn = self._random(3).standard_normal((_DRAWS, len(self.law.theta)))
        return self.law.theta + self._spread[:, None] * drawn @ _root(np.array(self.law.covariance)).T

    @cached_property
    def _scatter(self) -> Array:
        return (self.law.sigma or 0.0) * self._spread * self._random(4).standard_normal(_DRAWS)

    @cached_property
    def _drift(self) -> Array:
        return DRIFT * self._random(5).standard_normal(_DRAWS)

    @cached_property
    def _kind(self) -> Array:
        return math.log(self.factor) / _TWO_SIDED * self._random(6).standard_normal(_DRAWS)

    @staticmethod
    def _random(stream: int) -> np.random.Generator:
        return np.random.default_rng(stream)


def _root(covariance: Array) -> Array:
    """A matrix R with R R' = covariance; unlike Cholesky, it tolerates a matrix that is singular up to rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
