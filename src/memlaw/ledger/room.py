"""How much more a ledger holds: what a law says of its rank, and what its versions have shown.

A law gives the capacity of a rank, in target tokens like these, as a lognormal: its median and its 95% interval. A
version whose facts are all certified shows that the capacity is no smaller than its tokens, and an update that did not
fit, that it is smaller than what that would have stored. The room is what this truncated distribution leaves beyond
what is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memlaw.ledger.records import Room
from memlaw.planning.result import Capacity

_TAIL = 0.025
_NORMAL = 1.959963984540054  # its quantile at 1 - _TAIL


@dataclass(frozen=True)
class CapacityBelief:
    """The capacity of a rank in target tokens: lognormal, truncated to what was seen to fit and not to fit."""

    log_median: float
    sigma: float
    """Standard deviation of the log."""
    fitted: float = 0.0
    """Most tokens that were seen to fit."""
    refused: float = math.inf
    """Fewest tokens that were seen not to fit."""

    @classmethod
    def from_law(cls, capacity: Capacity) -> CapacityBelief:
        """Of a plan's capacity, whose interval may lie unevenly around the median: the wider side counts."""
        low, high = max(capacity.low, 1e-9), max(capacity.high, capacity.tokens)
        wider = max(math.log(capacity.tokens / low), math.log(high / capacity.tokens) if math.isfinite(high) else 0.0)
        return cls(math.log(capacity.tokens), max(wider / _NORMAL, 1e-6))

    def seen(self, fitted: Sequence[float], refused: Sequence[float] = ()) -> CapacityBelief:
        """With what was seen to fit and not to fit; a failure below what fitted once says nothing of the capacity."""
        most = max((self.fitted, *fitted))
        fewest = min((self.refused, *(tokens for tokens in refused if tokens > most)))
        return CapacityBelief(self.log_median, self.sigma, most, fewest)

    def quantile(self, share: float) -> float:
        """The capacity below which it lies with probability `share`."""
        from scipy.stats import truncnorm

        a, b = self._standard(self.fitted), self._standard(self.refused)
        inside = float(truncnorm.ppf(share, a, b))
        if not math.isfinite(inside):  # all of the law's mass lies far below what was seen to fit
            inside = a
        return min(max(math.exp(self.log_median + self.sigma * inside), self.fitted), self.refused)

    def chance(self, tokens: float) -> float:
        """The probability that so many tokens fit."""
        from scipy.stats import truncnorm

        if tokens <= self.fitted:
            return 1.0
        if tokens >= self.refused:
            return 0.0
        survives = float(
            truncnorm.sf(self._standard(tokens), self._standard(self.fitted), self._standard(self.refused))
        )
        return survives if math.isfinite(survives) else 0.0

    def room(self, held: float) -> Room:
        """What fits beyond `held` tokens: the median, and the interval that holds it with probability 95%."""
        low, middle, high = (max(0.0, self.quantile(share) - held) for share in (_TAIL, 0.5, 1 - _TAIL))
        return Room(middle, low, high)

    def _standard(self, tokens: float) -> float:
        if tokens <= 0:
            return -math.inf
        return math.inf if math.isinf(tokens) else (math.log(tokens) - self.log_median) / self.sigma
