"""A stack of adapters between two steps: everything that training changes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.training.optimizers.base import StackedOptimizer
from memlaw.training.per_adapter import PerAdapter
from memlaw.training.stalling import Fewest


@dataclass(eq=False)
class State:
    """K adapters that train together."""

    runs: tuple[int, ...]
    """Places of these adapters among the runs of the engine; results and orders of rows go by them."""
    configs: tuple[TrainConfig, ...]
    stack: AdapterStack
    optimizer: StackedOptimizer
    latest: Tensor
    """[K, rows, tokens]: nll of each target token at the last step that saw it; infinite before, and in padding."""
    average: AdapterStack | None = None
    """The averages of the adapters over the steps so far, of an adapter without one the adapter itself; None: all."""
    step: int = 0
    rows_at_once: int | None = None
    """Rows of a step that go through the model together; None for all of them."""
    risen_for: tuple[int, ...] = ()
    """For each adapter, its latest steps in a row whose loss was clearly above the start (`training.divergence`)."""
    fewest: tuple[Fewest, ...] = ()
    """For each adapter, the fewest tokens it had left (`training.stalling`)."""
    halvings: tuple[float, ...] = ()
    """For each adapter, how often the weight of its protection has halved."""
    forwarded: tuple[int, ...] = ()
    """For each adapter, the tokens of rows that its steps and checks have put through the model."""

    def __post_init__(self) -> None:
        self.risen_for = self.risen_for or (0,) * len(self.runs)
        self.fewest = self.fewest or (Fewest(),) * len(self.runs)
        self.halvings = self.halvings or (0.0,) * len(self.runs)
        self.forwarded = self.forwarded or (0,) * len(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @cached_property
    def settings(self) -> PerAdapter:
        return PerAdapter.from_configs(self.configs, str(self.latest.device))

    @property
    def lasting(self) -> AdapterStack:
        """The adapters as they would be if training ended now."""
        return self.average or self.stack

    def count_forwarded(self, places: Sequence[int], tokens: Sequence[int]) -> None:
        """Add `tokens` to what the adapters at `places` have put through the model."""
        counts = list(self.forwarded)
        for place, count in zip(places, tokens, strict=True):
            counts[place] += count
        self.forwarded = tuple(counts)

    def keep_latest(self, places: Sequence[int]) -> None:
        """Make the latest weights of the adapters at `places` the lasting ones."""
        if self.average is not None:
            for lasting, latest in zip(self.average.tensors, self.stack.tensors, strict=True):
                lasting[list(places)] = latest.detach()[list(places)]

    def select(self, keep: Sequence[int]) -> State:
        """The adapters at the places `keep`, with tensors of their own."""
        stack = self.stack.select(keep)
        return State(
            runs=tuple(self.runs[k] for k in keep),
            configs=tuple(self.configs[k] for k in keep),
            stack=stack,
            optimizer=self.optimizer.select(keep, stack.tensors),
            latest=self.latest[list(keep)],
            average=self.average and self.average.select(keep),
            step=self.step,
            rows_at_once=self.rows_at_once,
            risen_for=tuple(self.risen_for[k] for k in keep),
            fewest=tuple(self.fewest[k] for k in keep),
            halvings=tuple(self.halvings[k] for k in keep),
            forwarded=tuple(self.forwarded[k] for k in keep),
        )
