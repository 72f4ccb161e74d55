"""What a plan aims at: all facts, a share of them, or a mean loss."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from memlaw.core.errors import ConfigError
from memlaw.law.growth import Array

_WANTED = "all, a share such as 0.99 or 99%, or a mean loss in nats such as loss=0.1"

_LEAST = 1e-300
"""Probability not told apart from 0."""


@dataclass(frozen=True)
class Target:
    """Exactly one of the two. Raises ConfigError for a number out of range."""

    share: float | None = 1.0
    """Of the records to come back verbatim, 1 for all."""
    loss: float | None = None
    """Mean loss (nats) to come down to, whatever is recalled at it."""

    def __post_init__(self) -> None:
        if (self.share is None) == (self.loss is None):
            raise ConfigError(f"A target is a share or a mean loss, not both and not neither. Choose {_WANTED}.")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"target is {self.share}: a share to recall is above 0 and at most 1. Choose {_WANTED}.")
        if self.loss is not None and not 0 < self.loss < math.inf:
            raise ConfigError(f"target is a loss of {self.loss} nats: no finite adapter reaches 0. Choose {_WANTED}.")

    @classmethod
    def parse(cls, text: str) -> Target:
        """`all`, `1.0`, `99%` or `loss=0.1`, as the command line has them. Raises ConfigError."""
        if text == "all":
            return cls()
        match = re.fullmatch(r"(loss=)?(\d*\.?\d+(?:e-?\d+)?)(%)?", text.strip())
        if match is None or (match[1] and match[3]):
            raise ConfigError(f"Cannot aim at {text!r}. Choose {_WANTED}.")
        value = float(match[2])
        return cls(None, value) if match[1] else cls(value / 100 if match[3] else value)

    def __str__(self) -> str:
        if self.share is None:
            return f"a mean loss of {self.loss:g} nats"
        return "all facts" if self.share == 1 else f"{self.share:.4g} of the facts"

    def rate(self, records: float, tokens: float, chance: float | Array = 0.5) -> Array:
        """First errors per target token at which the share is missed with probability `chance`.

        k = (1 - share) n of n records may fail, and each comes back with probability exp(-rate * tokens / n): at most k
        fail with probability 1 - I_q(k + 1, n - k), where q is that of one to fail. Of all records that is exp(-rate *
        tokens), and the rate at the chance 1/2 is ln 2 / tokens. Raises ConfigError for a target that is a loss.
        """
        from scipy.special import betaincinv

        if self.share is None:
            raise ConfigError(f"{self} is no share of anything.")
        may_fail = (1 - self.share) * records
        comes_back = betaincinv(records - may_fail, may_fail + 1, 1 - np.asarray(chance))
        return np.asarray(-np.log(np.maximum(comes_back, _LEAST)) * records / tokens)
