"""Which packs first, and which of several runs takes which."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass

from memlaw.core.errors import ConfigError


def longest_first(costs: Sequence[float]) -> list[int]:
    """The numbers of packs by falling cost: handed out in this order, they end at most 4/3 as late as they could.

    Source: R. L. Graham, Bounds on multiprocessing timing anomalies, 1969.
    """
    return sorted(range(len(costs)), key=lambda number: (-costs[number], number))


@dataclass(frozen=True)
class Shard:
    """The share of one of `count` runs that divide a probe among them without talking to each other."""

    index: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/20` is the third of twenty. Raises ConfigError."""
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(
                f"The shard {text!r} is not of the form 3/20, the third of twenty. Shards count from 1: in a Slurm "
                "array, `#SBATCH --array=1-20` and `--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`."
            )
        return cls(int(found[1]), int(found[2]))

    def share(self, costs: Sequence[float]) -> list[int]:
        """Numbers of the packs that are its own: each pack, longest first, goes to the shard with the least so far.

        A function of the costs alone, so that all shards come to the same division.
        """
        loads = [(0.0, shard) for shard in range(1, self.count + 1)]
        own = []
        for number in longest_first(costs):
            load, shard = loads[0]
            heapq.heapreplace(loads, (load + costs[number], shard))
            if shard == self.index:
                own.append(number)
        return sorted(own)
