"""The mean loss at which a memory set is recalled: a curve learned from cells, with the doubt of it.

    P(a record of m target tokens comes back verbatim | mean loss L) = exp(-m h(L)),   h(L) = h (L / 0.4)^c

h(L) is the rate of first errors per token. A set of l tokens comes back whole with probability exp(-l h(L)), so a
longer set needs a lower loss, and cells of a few short records say how much lower. memlaw's own, not the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memlaw.law.growth import Array

_REFERENCE = 0.4
"""Nats of mean loss at which `h` is stated: where sets of some hundred tokens are at the edge of recall."""

_LOG_H, _LOG_H_DOUBT = math.log(1 / 100), 1.2

_LOG_C, _LOG_C_DOUBT = math.log(4.2), 0.3
"""What is known before any cell: ln h and ln c with their standard deviations. Measured on the bundled base, in 12 sets
of three kinds trained at 16 ranks each (docs/results.md): h from 1/750 to 1/31, c from 3.3 to 5.5."""

_NODES = 81
"""Of the grid on which the curve is weighed, along each axis."""

_SPAN = 5.0
"""Half the width of the grid, in standard deviations of what is known beforehand."""

_LEAST, _MOST = 1e-9, 30.0
"""Losses and rates that are not told apart from 0, and logarithms of a rate from certain failure."""


@dataclass(frozen=True)
class CellRecall:
    """What a finished cell says of recall."""

    loss_final: float
    exact: int
    """Records that greedy decoding reproduced."""
    records: int
    tokens: int
    """Target tokens of all of them."""


@dataclass(frozen=True, eq=False)
class RecallCurve:
    """h(L) as far as some cells tell it: (ln h, ln c) on the nodes of a grid, each with its probability."""

    nodes: Array
    """[nodes, 2]."""
    weights: Array
    """[nodes], 1 in all."""
    cells: int
    """That it was learned from."""

    @property
    def mean(self) -> Array:
        """(ln h, ln c) on average."""
        return np.asarray(self.weights @ self.nodes)

    def loss_for(self, rate: float | Array, theta: Array | None = None) -> Array:
        """The mean loss (nats) at which h(L) is `rate`, errors per token; for each theta [..., 2], or for the mean."""
        log_h, log_c = np.moveaxis(self.mean if theta is None else theta, -1, 0)
        return np.asarray(_REFERENCE * np.exp((np.log(rate) - log_h) / np.exp(log_c)))

    def draws(self, random: np.random.Generator, count: int) -> Array:
        """theta [count, 2] as it might be."""
        return self.nodes[random.choice(len(self.nodes), count, p=self.weights)]


def recall_curve(cells: Sequence[CellRecall] = ()) -> RecallCurve:
    """What some cells say of h(L), on top of what is known without any: Bayes' rule on a grid."""
    axis = np.linspace(-_SPAN, _SPAN, _NODES)
    nodes = np.stack(np.meshgrid(_LOG_H + _LOG_H_DOUBT * axis, _LOG_C + _LOG_C_DOUBT * axis), axis=-1).reshape(-1, 2)
    surprise = (((nodes - (_LOG_H, _LOG_C)) / (_LOG_H_DOUBT, _LOG_C_DOUBT)) ** 2).sum(axis=1) / 2
    for cell in cells:
        surprise += _surprise(nodes, cell)
    weights = np.exp(surprise.min() - surprise)
    return RecallCurve(nodes, weights / weights.sum(), len(cells))


def _surprise(theta: Array, cell: CellRecall) -> Array:
    """-ln P(so many of the records came back), for each theta [..., 2], up to a constant."""
    log_h, log_c = np.moveaxis(theta, -1, 0)
    rate = np.exp(np.minimum(log_h + np.exp(log_c) * math.log(max(cell.loss_final, _LEAST) / _REFERENCE), _MOST))
    expected = rate * cell.tokens / cell.records
    missed = -np.log(-np.expm1(-np.maximum(expected, _LEAST)))
    return np.asarray(cell.exact * expected + (cell.records - cell.exact) * missed)
