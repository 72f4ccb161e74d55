from __future__ import annotations

from collections.abc import Sequence

from memlaw.adapter.placement import Placement
from memlaw.core.config import TrainConfig
from memlaw.training.run import Run


def runs_at(placement: Placement, ranked: Sequence[tuple[int, TrainConfig]]) -> list[Run]:
    """Runs that share a placement, from their (rank, config)."""
    return [Run(rank, placement, config) for rank, config in ranked]
