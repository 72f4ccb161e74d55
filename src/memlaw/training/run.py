"""One adapter to be trained: a stack is a list of them."""

from __future__ import annotations

from dataclasses import dataclass

from memlaw.adapter.placement import Placement
from memlaw.core.config import TrainConfig


@dataclass(frozen=True)
class Run:
    """Rank, place and training of one adapter."""

    rank: int
    placement: Placement
    config: TrainConfig
