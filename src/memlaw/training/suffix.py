"""Rows of tokens behind a frozen prefix: what an adapter cannot change is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from memlaw.core.config import Execution
from memlaw.model.base import Base
from memlaw.model.outline import Site
from memlaw.model.prefix_cache import PrefixCache
from memlaw.model.split import Forward, split


@dataclass(frozen=True, eq=False)
class Suffix:
    """The layers that training repeats, and the states of every row that go into them."""

    forward: Forward
    states: Tensor
    """[rows, time, ...], one entry per row; on the CPU if the accelerator is small."""
    device: str

    @classmethod
    def of_rows(cls, base: Base, sites: Sequence[Site], ids: Tensor, execution: Execution) -> Suffix:
        """Run the layers below the first of `sites`, which come by layer, over all rows of `ids` [rows, time], once."""
        first, last = sites[0].layer, sites[-1].layer
        first_sites = [site.path for site in sites if site.layer == first]
        forward = split(base.model, first, first_sites, ids, last)
        if execution.compiled:
            forward.compile_above()
        if execution.prefix_cache is None:
            return cls(forward, forward.cache(ids), base.device)
        cache = PrefixCache(execution.prefix_cache)
        return cls(forward, cache.states(base, first_sites, forward, ids), base.device)

    def states_of(self, rows: Tensor) -> Tensor:
        """The states [n, time, ...] of `rows` [n], on the device of the model."""
        return self.states[rows.to(self.states.device)].to(self.device)

    def hidden(self, rows: Tensor) -> Tensor:
        """Final states [n, time, d], after the final norm, of `rows` [n] with whatever is attached to the model."""
        return self.forward(self.states_of(rows))
