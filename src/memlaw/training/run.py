"""One adapter to be trained: a stack is a list of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact


@dataclass(frozen=True)
class Run:
    """Rank, place and training of one adapter."""

    rank: int
    placement: Placement
    config: TrainConfig
    near_misses: tuple[EncodedFact, ...] = ()
    """Prompts that `rehearse` takes from; without any it does nothing."""
    start: AdapterStack | None = field(default=None, compare=False)
    """The adapter to go on from, at the sites of `placement` and of this rank or a smaller one; None: a new one."""
    neutral: Tensor | None = field(default=None, compare=False)
    """[rows, time] ids of text that a protected adapter is to leave as it is; None: what the base writes itself."""
