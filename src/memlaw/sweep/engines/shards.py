"""The order of packs, and their division among several runs."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass

from memlaw.core.errors import ConfigError


def longest_first(costs: Sequence[float]) -> list[int]:
    """The numbers of packs by falling cost: in this order, the last ends at most 4/3 as late as in the best order.

    Source: R. L. Graham, Bounds on multiprocessing timing anomalies, 1969.
    """
    return sorted(range(len(costs)), key=lambda number: (-costs[number], number))


@dataclass(frozen=True)
class Shard:
    """The share of one run among `count` runs that divide a probe without communicating."""

    index: int
    """From 1."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/20` is the third of twenty. Raises ConfigError."""
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"The shard {text!r} is not of the form 3/20, the third of twenty. Shards count from 1. In a Slurm "
                "array, use `#SBATCH --array=1-20` and `--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`."
            )
        return cls(int(match[1]), int(match[2]))

    def share(self, costs: Sequence[float]) -> list[int]:
        """The numbers of this shard's packs: each pack, longest first, goes to the shard with the least cost so far.

        A function of the costs alone, so that all shards agree on the division.
        """
        loads = [(0.0, shard) for shard in range(1, self.count + 1)]
        own = []
        for number in longest_first(costs):
            load, shard = loads[0]
            heapq.heapreplace(loads, (load + costs[number], shard))
            if shard == self.index:
                own.append(number)
        return sorted(own)
