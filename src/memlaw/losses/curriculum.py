"""The SW curriculum: more and more of the samples, in one fixed shuffled order (arXiv 2605.30260, section 4).

Its loss is that of ot; it changes which samples a step may see.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from memlaw.core.config import CURRICULUM_RATIOS
from memlaw.core.errors import ConfigError


@dataclass(frozen=True)
class PublishedCurriculum:
    """One row of the published table: how the phone book of one length was trained."""

    learning_rate: float
    boundaries: tuple[int, ...]
    """Epochs until which 20, 40, 60, 80 and 100% of the samples are exposed."""
    batch_size: int
    accumulation: int
    """Batches of one optimizer step."""

    @property
    def epochs(self) -> int:
        return self.boundaries[-1]


_SHORT = PublishedCurriculum(1e-2, (20, 40, 60, 80, 300), batch_size=10, accumulation=1)

_LONG = PublishedCurriculum(5e-3, (80, 160, 240, 320, 600), batch_size=40, accumulation=2)

CURRICULA: dict[int, PublishedCurriculum] = {
    1000: _SHORT,
    2000: _SHORT,
    4000: PublishedCurriculum(1e-2, (30, 60, 90, 120, 350), batch_size=10, accumulation=1),
    8000: PublishedCurriculum(7e-3, (30, 60, 90, 120, 350), batch_size=20, accumulation=2),
    12000: PublishedCurriculum(5e-3, (60, 120, 180, 240, 500), batch_size=40, accumulation=2),
    16000: _LONG,
    24000: _LONG,
    32000: PublishedCurriculum(5e-3, (100, 200, 300, 400, 700), batch_size=40, accumulation=2),
}
"""Target tokens of the phone book (Qwen3, about 10 a record) -> its published training."""


def exposed(count: int, epoch: int, boundaries: Sequence[int], ratios: Sequence[float] = CURRICULUM_RATIOS) -> int:
    """How many of `count` samples epoch `epoch` (from 0) may see: the first so many of the shuffled order.

    max(1, floor(ratio * count)), with the ratio of the first boundary above `epoch`, or the last ratio past the last
    boundary. Raises ConfigError.
    """
    _check(boundaries, ratios)
    ratio = next((ratio for ratio, end in zip(ratios, boundaries, strict=True) if epoch < end), ratios[-1])
    share = math.floor(ratio * count + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return min(count, max(1, share))


def curriculum_order(count: int, seed: int) -> Tensor:
    """The shuffled order of `count` samples, the same in all epochs: [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def curriculum_rows(count: int, size: int, steps: int, *, boundaries: Sequence[int], seed: int) -> Iterator[Tensor]:
    """The samples [size] of each of `steps` steps.

    An epoch is one pass over the exposed samples in `curriculum_order`. The budget is in steps, so boundaries count by
    their proportions: the last epoch ends with the last step. If `steps` is the number of steps that the epochs take in
    batches of `size`, these are exactly their batches. The last batch of an epoch is filled up from the next one.
    """
    order = curriculum_order(count, seed)
    starts = (0, *boundaries[:-1])
    shares = [exposed(count, start, boundaries) for start in starts]
    seen = itertools.accumulate((end - start) * n for start, end, n in zip(starts, boundaries, shares, strict=True))
    *_, whole = samples_by_boundary = tuple(seen)
    step = 0
    for n, samples in zip(shares, samples_by_boundary, strict=True):
        last = math.ceil(Fraction(steps * samples, whole))
        for batch in range(last - step):
            yield order[torch.arange(batch * size, (batch + 1) * size) % n]
        step = last


def _check(boundaries: Sequence[int], ratios: Sequence[float]) -> None:
    if len(boundaries) != len(ratios):
        raise ConfigError(
            f"{len(boundaries)} boundaries for {len(ratios)} exposed shares ({_listed(ratios)}): "
            "give one boundary for each share, the epoch at which it ends."
        )
    if not all(low < high for low, high in itertools.pairwise((0, *boundaries))):
        raise ConfigError(
            f"The boundaries {_listed(boundaries)} must increase, from above 0: each is the epoch at which one share "
            "of the samples ends and a larger one begins, such as 20, 40, 60, 80, 300."
        )
    if not all(low < high for low, high in itertools.pairwise((0, *ratios))) or ratios[-1] > 1:
        raise ConfigError(f"The exposed shares {_listed(ratios)} must increase, from above 0 to at most 1.")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
