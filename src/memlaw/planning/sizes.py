"""The size a memory set may need: many draws of all that is not known for sure, each turned into one size.

Not known are the law (its covariance), one training's scatter around it, the loss that recall needs, whether chance
lets the set come back at that loss, whether the law goes on beyond the lengths it was fitted to, and what data of
another kind than its cells' cost.
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
"""Standard deviation of what ln size may go astray per unit of ln length beyond the fitted lengths. Measured on the
bundled base: from lengths up to 64 to 192 tokens the rank for a loss of 0.6 to 0.15 nats was predicted 0% to 30% too
high, 0.0 to 0.2 a unit (docs/results.md)."""

_DRAWS = 2000

_STRATA = 200

_TWO_SIDED = 1.96
"""Standard deviations within which 95% of a normal law lie."""

TAILS = (0.025, 0.975)


@dataclass(frozen=True)
class Sizes:
    """Sizes, in units of the law's axis, that sets of one kind of data need to meet a target."""

    law: LawFit
    recall: RecallCurve
    target: Target
    records: int
    tokens: int
    """Target tokens of all records; another number of tokens means so many records of the same length."""
    loss_init: float
    """Nats before training."""
    factor: float = 1.0
    """Within which the law's sizes are right for these data, either way, 95% sure; 1 for data of its own kind."""

    def loss(self, tokens: float) -> float:
        """The mean loss (nats) at which so many tokens meet the target."""
        return float(self.recall.loss_for(self._rate(tokens, 0.5))) if self.target.loss is None else self.target.loss

    def point(self, tokens: float, loss: float | None = None) -> float:
        """The law's own answer: the size at which so many tokens end at `loss`, by default the one needed."""
        wanted = self.loss(tokens) if loss is None else loss
        return self.law.rank_for(tokens, loss_final=min(wanted, self.loss_init), loss_init=self.loss_init)

    def draws(self, tokens: float, loss: float | None = None) -> Array:
        """Sizes [draws] that may be needed for it; the draws are the same every time. Raises FitError without doubt."""
        start = float(self.law.start_at(tokens, self.loss_init))
        delta = start - np.minimum(self._losses(tokens) if loss is None else loss, start)
        extra: float | Array = 0.0
        scale = SCALES[self.law.residuals]
        if scale.nats:
            # Near the ceiling dL hardly moves with u, so a training that falls short makes up for it on u.
            extra = -self._scatter
        else:
            level = np.full(_DRAWS, start)
            delta = scale.invert(scale.transform(delta, level) - self._scatter, level)
        sizes = self.law.curve.size_for(self._laws, tokens, delta, start, extra)
        return sizes * np.exp(self._drift * self._beyond(tokens) + self._kind)

    def _losses(self, tokens: float) -> float | Array:
        if self.target.loss is not None:
            return self.target.loss
        # Every chance alike: what it is paired with is drawn, so that it need not be.
        rates = self._rate(tokens, (np.arange(_STRATA) + 0.5) / _STRATA)
        return self.recall.loss_for(np.resize(rates, _DRAWS), self._recalls)

    def _rate(self, tokens: float, chance: float | Array) -> Array:
        return self.target.rate(self.records * tokens / self.tokens, tokens, chance)

    def _beyond(self, tokens: float) -> float:
        low, high = self.law.lengths
        return abs(math.log(tokens / min(max(tokens, low), high)))

    @cached_property
    def _recalls(self) -> Array:
        return self.recall.draws(self._random(1), _DRAWS)

    @cached_property
    def _spread(self) -> Array:
        """Student's t, not normal: sigma itself is only known from the cells that were left over."""
        return np.sqrt(self.law.freedom / self._random(2).chisquare(self.law.freedom, _DRAWS))

    @cached_property
    def _laws(self) -> Array:
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
    """A matrix R with R R' = covariance, which may be singular up to rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))
