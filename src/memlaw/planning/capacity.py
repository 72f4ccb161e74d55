"""How many target tokens a rank holds: the sizes that sets of every length may need, inverted."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from memlaw.law.growth import Array
from memlaw.planning.result import Capacity
from memlaw.planning.sizes import TAILS, Sizes

LENGTHS = np.geomspace(1 / 64, 64, 97)
"""Multiples of a set's own length, between which the capacity of a rank is searched."""


class Capacities:
    """The capacity of every rank, for data of one kind. What any rank needs is computed once."""

    def __init__(self, sizes: Sizes, unit: float, multiples: Array = LENGTHS) -> None:
        """`unit` is the size of rank 1 on the law's axis; `multiples` of the set's own length are searched."""
        self.sizes, self.unit = sizes, unit
        self._lengths = sizes.tokens * multiples

    def at(self, rank: int) -> Capacity:
        """The lengths at which the size needed exceeds this rank: by the law itself, and for 95% of the draws."""
        lengths, sizes = self._lengths, self.sizes
        low, high = float(lengths[0]), float(lengths[-1])
        if self._tails is not None:
            # A small size needed means a long text fits: the lower tail of sizes gives the upper end of lengths.
            high, low = (_crossing(lengths, tail, rank) for tail in self._tails)
        saturates = sizes.law.length_for(rank * self.unit, loss_init=sizes.loss_init)
        tokens = _crossing(lengths, self._points, rank)
        return Capacity(rank, tokens, low, high, saturates if math.isfinite(saturates) else None)

    @cached_property
    def _points(self) -> Array:
        """Rank needed at each length, by the law itself."""
        return np.array([self.sizes.point(length) for length in self._lengths]) / self.unit

    @cached_property
    def _tails(self) -> Array | None:
        """Ends of the 95% interval of the rank needed [2, lengths]; None if the law has no error bars."""
        if self.sizes.law.covariance is None or self.sizes.law.sigma is None:
            return None
        drawn = np.stack([self.sizes.draws(length) for length in self._lengths]) / self.unit
        return np.quantile(drawn, TAILS, axis=1, method="inverted_cdf")


def _crossing(lengths: Array, needed: Array, rank: float) -> float:
    """The length at which `needed` exceeds `rank`, interpolated in logarithms; the first or last length if it never
    crosses."""
    above = needed > rank
    if not above.any():
        return float(lengths[-1])
    first = int(above.argmax())
    if first == 0:
        return float(lengths[0])
    if not math.isfinite(needed[first]) or needed[first - 1] <= 0:  # no logarithm to interpolate
        return float(lengths[first - 1])
    ends = np.log(needed[first - 1 : first + 1])
    return float(np.exp(np.interp(math.log(rank), ends, np.log(lengths[first - 1 : first + 1]))))
