"""How much more a ledger holds: what a law says of its rank, what its versions have held, and what they cost the model.

A law gives the capacity of a rank, in target tokens like these, as a lognormal: its median and its 95% interval. A
version whose facts are all certified shows that the capacity is no smaller than its tokens, and an update that did not
fit, that it is smaller than what that would have stored. An adapter is also full once it costs the model more than is
allowed. The room is what the smaller of the two leaves beyond what is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memlaw.ledger.records import Room
from memlaw.planning.result import Capacity

HARM_EXPONENT = 1.4
"""What the model loses grows as this power of the target tokens held, from any version on. Measured on the bundled base
(docs/results.md)."""

_HARM_EXPONENT_ERROR = 0.35
"""Standard deviation of its logarithm."""

_HARM_NOISE = 0.25
"""Standard deviation of ln harm from one update to the next."""

_LEAST_HARM = 0.01
"""Part of the bound below which a measured harm counts as this part: it may be noise, or none."""

_HARM_OVER_RANK = 0.6
"""The tokens at which harm reaches its bound grow as this power of the rank."""

_HARM_OVER_RANK_ERROR = 0.3
"""Standard deviation of that power."""

_TAIL = 0.025
_NORMAL = 1.959963984540054  # its quantile at 1 - _TAIL


@dataclass(frozen=True)
class Lognormal:
    """A number of target tokens that is known up to a factor."""

    log_median: float
    sigma: float
    """Standard deviation of the log."""

    def log_survival(self, tokens: float) -> float:
        """ln of the probability that it is above `tokens`."""
        from scipy.special import log_ndtr

        if tokens <= 0:
            return 0.0
        return -math.inf if math.isinf(tokens) else float(log_ndtr((self.log_median - math.log(tokens)) / self.sigma))


def harm_limit(tokens: float, harm: float, most: float, ranks: float = 1.0) -> Lognormal:
    """The tokens at which an adapter will cost the model `most` nats a token, if at `tokens` it costs `harm`:

    tokens * (most / harm)^(1 / HARM_EXPONENT), for another rank, `ranks` times as high, times ranks^0.6.
    """
    away = math.log(most / max(harm, _LEAST_HARM * most)) / HARM_EXPONENT
    wider = math.log(ranks)
    errors = (away * _HARM_EXPONENT_ERROR, _HARM_NOISE / HARM_EXPONENT, wider * _HARM_OVER_RANK_ERROR)
    return Lognormal(math.log(tokens) + away + wider * _HARM_OVER_RANK, math.hypot(*errors))


@dataclass(frozen=True)
class CapacityBelief:
    """The capacity of a rank in target tokens: its smallest limit, given what was seen to fit and not to fit."""

    limits: tuple[Lognormal, ...]
    """Independent; never empty."""
    fitted: float = 0.0
    """Most tokens that were seen to fit."""
    refused: float = math.inf
    """Fewest tokens that were seen not to fit."""

    @classmethod
    def from_law(cls, capacity: Capacity) -> CapacityBelief:
        """Of a plan's capacity, whose interval may lie unevenly around the median: the wider side counts."""
        low, high = max(capacity.low, 1e-9), max(capacity.high, capacity.tokens)
        wider = max(math.log(capacity.tokens / low), math.log(high / capacity.tokens) if math.isfinite(high) else 0.0)
        return cls((Lognormal(math.log(capacity.tokens), max(wider / _NORMAL, 1e-6)),))

    def below(self, limit: Lognormal) -> CapacityBelief:
        """With one more limit."""
        return replace(self, limits=(*self.limits, limit))

    def seen(self, fitted: Sequence[float], refused: Sequence[float] = ()) -> CapacityBelief:
        """With what was seen to fit and not to fit; a failure below what fitted once says nothing of the capacity."""
        most = max((self.fitted, *fitted))
        fewest = min((self.refused, *(tokens for tokens in refused if tokens > most)))
        return replace(self, fitted=most, refused=fewest)

    def quantile(self, share: float) -> float:
        """The capacity below which it lies with probability `share`."""
        low = math.log(self.fitted) if self.fitted > 0 else min(one.log_median - 40 * one.sigma for one in self.limits)
        high = math.log(self.refused) if math.isfinite(self.refused) else low + 1.0
        while math.isinf(self.refused) and self.chance(math.exp(high)) > 1 - share:
            low, high = high, high + 2 * (high - low)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.chance(math.exp(middle)) > 1 - share else (low, middle)
        return min(max(math.exp(low), self.fitted), self.refused)

    def chance(self, tokens: float) -> float:
        """The probability that so many tokens fit."""
        if tokens <= self.fitted:
            return 1.0
        if tokens >= self.refused:
            return 0.0
        known = self._log_survival(self.fitted)
        here, end = (math.exp(self._log_survival(at) - known) for at in (tokens, self.refused))
        return min(1.0, max(0.0, (here - end) / (1 - end))) if end < 1 else 0.0

    def room(self, held: float) -> Room:
        """What fits beyond `held` tokens: the median, and the interval that holds it with probability 95%."""
        low, middle, high = (max(0.0, self.quantile(share) - held) for share in (_TAIL, 0.5, 1 - _TAIL))
        return Room(middle, low, high)

    def _log_survival(self, tokens: float) -> float:
        """ln of the probability that every limit is above `tokens`, whatever was seen."""
        return math.fsum(one.log_survival(tokens) for one in self.limits)
