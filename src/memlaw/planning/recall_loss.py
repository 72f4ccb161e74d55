"""The mean loss at which a memory set is recalled: a curve estimated from cells, with its uncertainty.

    P(a record of m target tokens comes back verbatim | mean loss L) = exp(-m h(L)),   h(L) = h (L / 0.4)^c

h(L) is the rate of first errors per target token. A set of l tokens comes back whole with probability exp(-l h(L)), so
a longer set needs a lower loss, and cells of a few short records show how much lower. This model is memlaw's own, not
part of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memlaw.law.growth import Array

# Mean loss (nats) at which `h` is stated: around it, sets of some hundred tokens are on the edge of recall.
_REFERENCE = 0.4

# Prior of ln h and ln c: mean and standard deviation. Measured on the bundled base, in 12 sets of three kinds trained
# at 16 ranks each (docs/results.md): h from 1/750 to 1/31, c from 3.3 to 5.5.
_LOG_H, _LOG_H_DEVIATION = math.log(1 / 100), 1.2
_LOG_C, _LOG_C_DEVIATION = math.log(4.2), 0.3

# The grid of the posterior: nodes along each axis, and half its width in prior standard deviations.
_NODES = 81
_SPAN = 5.0

# Losses and rates below the first count as 0; rates above e to the second as certain failure.
_LEAST, _MOST = 1e-9, 30.0


@dataclass(frozen=True)
class CellRecall:
    """How many records of a finished cell came back."""

    loss_final: float
    """Mean loss after training, nats per target token."""
    exact: int
    """Records that greedy decoding reproduced."""
    records: int
    """Records trained."""
    tokens: int
    """Target tokens of all records together."""


@dataclass(frozen=True, eq=False)
class RecallCurve:
    """h(L) = h (L / 0.4)^c as a distribution: (ln h, ln c) on the nodes of a grid, with their probabilities."""

    nodes: Array
    """[nodes, 2], (ln h, ln c)."""
    weights: Array
    """[nodes], probabilities that sum to 1."""
    cells: int
    """Number of cells it was estimated from."""

    @property
    def mean(self) -> Array:
        """[2], the mean of (ln h, ln c)."""
        return np.asarray(self.weights @ self.nodes)

    def loss_for(self, rate: float | Array, theta: Array | None = None) -> Array:
        """The mean loss in nats at which h(L) = `rate` errors per token, for each theta [..., 2] or for the mean."""
        log_h, log_c = np.moveaxis(self.mean if theta is None else theta, -1, 0)
        return np.asarray(_REFERENCE * np.exp((np.log(rate) - log_h) / np.exp(log_c)))

    def draws(self, random: np.random.Generator, count: int) -> Array:
        """Samples of (ln h, ln c), [count, 2]."""
        return self.nodes[random.choice(len(self.nodes), count, p=self.weights)]


def recall_curve(cells: Sequence[CellRecall] = ()) -> RecallCurve:
    """The posterior of h(L) given these cells, by Bayes' rule on a grid; the prior if there are none."""
    axis = np.linspace(-_SPAN, _SPAN, _NODES)
    nodes = np.stack(np.meshgrid(_LOG_H + _LOG_H_DEVIATION * axis, _LOG_C + _LOG_C_DEVIATION * axis), axis=-1).reshape(
        -1, 2
    )
    neg_log = (((nodes - (_LOG_H, _LOG_C)) / (_LOG_H_DEVIATION, _LOG_C_DEVIATION)) ** 2).sum(axis=1) / 2
    for cell in cells:
        neg_log += _neg_log_likelihood(nodes, cell)
    weights = np.exp(neg_log.min() - neg_log)
    return RecallCurve(nodes, weights / weights.sum(), len(cells))


def _neg_log_likelihood(theta: Array, cell: CellRecall) -> Array:
    """-ln P(exact of the records came back) for each theta [..., 2], up to a constant."""
    log_h, log_c = np.moveaxis(theta, -1, 0)
    rate = np.exp(np.minimum(log_h + np.exp(log_c) * math.log(max(cell.loss_final, _LEAST) / _REFERENCE), _MOST))
    expected = rate * cell.tokens / cell.records
    missed = -np.log(-np.expm1(-np.maximum(expected, _LEAST)))
    return np.asarray(cell.exact * expected + (cell.records - cell.exact) * missed)
