"""A stack of adapters between two steps: all that training changes, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.training.optimizer import StackedAdamW
from memlaw.training.settings import Settings


@dataclass(eq=False)
class State:
    """K adapters that train together."""

    runs: tuple[int, ...]
    """Which runs of the call they belong to; also what their random streams and results go by."""
    configs: tuple[TrainConfig, ...]
    stack: AdapterStack
    optimizer: StackedAdamW
    latest: Tensor
    """[K, rows, tokens]: nll of each target token at the last step that saw it; infinite before, and where none is."""
    step: int = 0
    rows_at_once: int | None = None
    """Rows of a step that go through the model together; None for all of them."""

    def __len__(self) -> int:
        return len(self.runs)

    @cached_property
    def settings(self) -> Settings:
        return Settings.of(self.configs, str(self.latest.device))

    def select(self, keep: Sequence[int]) -> State:
        """The adapters at the places `keep`, in memory of their own."""
        stack = self.stack.select(keep)
        return State(
            runs=tuple(self.runs[k] for k in keep),
            configs=tuple(self.configs[k] for k in keep),
            stack=stack,
            optimizer=self.optimizer.select(keep, stack.tensors),
            latest=self.latest[list(keep)],
            step=self.step,
            rows_at_once=self.rows_at_once,
        )
