"""The target of a plan: all facts, a share of them, or a mean loss."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from memlaw.core.errors import ConfigError
from memlaw.law.growth import Array

_CHOICES = "all, a share such as 0.99 or 99%, or a mean loss in nats such as loss=0.1"

# Smallest probability whose logarithm is taken.
_LEAST = 1e-300


@dataclass(frozen=True)
class Target:
    """A share of the records or a mean loss, exactly one of them. Raises ConfigError for a number out of range."""

    share: float | None = 1.0
    """Share of the records to recall verbatim; 1 for all."""
    loss: float | None = None
    """Mean loss to reach, in nats per token, however much is recalled at it."""

    def __post_init__(self) -> None:
        if (self.share is None) == (self.loss is None):
            raise ConfigError(f"A target is either a share or a mean loss. Choose {_CHOICES}.")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"target is {self.share}, but a share must be above 0 and at most 1. Choose {_CHOICES}.")
        if self.loss is not None and not 0 < self.loss < math.inf:
            raise ConfigError(
                f"target is a loss of {self.loss} nats, but a loss must be finite and above 0 (no finite adapter "
                f"reaches 0). Choose {_CHOICES}."
            )

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `all`, `1.0`, `99%` or `loss=0.1`, as on the command line. Raises ConfigError for anything else."""
        if text == "all":
            return cls()
        match = re.fullmatch(r"(loss=)?(\d*\.?\d+(?:e-?\d+)?)(%)?", text.strip())
        if match is None or (match[1] and match[3]):
            raise ConfigError(f"Cannot read the target {text!r}. Choose {_CHOICES}.")
        value = float(match[2])
        return cls(None, value) if match[1] else cls(value / 100 if match[3] else value)

    def __str__(self) -> str:
        if self.share is None:
            return f"a mean loss of {self.loss:g} nats"
        return "all facts" if self.share == 1 else f"{self.share:.4g} of the facts"

    def rate(self, records: float, tokens: float, chance: float | Array = 0.5) -> Array:
        """The rate of first errors per target token at which the share is missed with probability `chance`.

        Of n records, k = (1 - share) n may fail. Each fails with probability q = 1 - exp(-rate * tokens / n), and at
        most k fail with probability 1 - I_q(k + 1, n - k), the regularised incomplete beta function. For share 1 this
        is exp(-rate * tokens), so chance 1/2 gives the rate ln 2 / tokens. Raises ConfigError if the target is a loss.
        """
        from scipy.special import betaincinv

        if self.share is None:
            raise ConfigError(
                f"The target is {self}, so no share of the records follows from it. Choose a share such as 0.99."
            )
        failures = (1 - self.share) * records
        recalled = betaincinv(records - failures, failures + 1, 1 - np.asarray(chance))
        return np.asarray(-np.log(np.maximum(recalled, _LEAST)) * records / tokens)
