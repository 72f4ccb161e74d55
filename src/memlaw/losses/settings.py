"""The settings of MemFT."""

from __future__ import annotations

import math
from typing import Annotated, TypedDict

from pydantic import Field

from memlaw.core.config import Method, Number, Rule, Weighting
from memlaw.core.errors import ConfigError
from memlaw.core.settings import Choose, settings


class MemFTKeywords(TypedDict, total=False):
    """The fields of `MemFT`, as keywords."""

    method: Method
    threshold: float
    margin: float
    rule: Rule
    position: float
    focus: float


@settings
class MemFT(Weighting):
    """Which weight each target token gets. Raises ConfigError for a setting that is unknown or out of range."""

    method: Method = "ot"
    """sft, ot, sw, or curriculum: that is ot, on the samples that `curriculum_rows` or `exposed` let a step see."""
    threshold: Annotated[Number, Field(gt=0, lt=1), Choose("a probability between 0 and 1")] = 0.5
    """Probability up to which a token is disordered."""
    margin: Annotated[Number, Field(ge=0), Choose("nats from 0 up", unit="nats")] = 0.0
    """How far below -log(threshold) a token's loss must get before it counts as ordered."""

    def __post_init__(self) -> None:
        at_threshold = -math.log(self.threshold)
        if self.margin >= at_threshold:
            raise ConfigError(
                f"Setting margin is {self.margin!r}: choose nats from 0 to below {at_threshold:.3g}, the loss at the "
                "threshold, since no loss is below 0."
            )

    @property
    def critical(self) -> float:
        """Nats below which a token is ordered: -log(threshold) - margin."""
        return -math.log(self.threshold) - self.margin

    @property
    def one_pass(self) -> bool:
        """Whether a token's weight is independent of the tokens after it."""
        return self.position == self.focus == 0
