"""Facts as rows of tokens, the order in which steps see them, and batches of rows with their target tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.losses import Samples, curriculum_rows

_ORDER_STREAM = 1_000_003


@dataclass(frozen=True, eq=False)
class Rows:
    """Facts as right-padded rows. `time` and `tokens` are the lengths of the longest row and the longest target."""

    ids: Tensor
    """[rows, time]"""
    predictor: Tensor
    """[rows, tokens], the position whose hidden state predicts the target token."""
    target: Tensor
    """[rows, tokens]"""
    mask: Tensor
    """[rows, tokens] bool, False in padding."""
    floor: Tensor
    """[rows, tokens] nats that the loss of a target token must reach where its row must not come back; elsewhere
    -infinity, which every loss reaches."""
    lengths: Tensor
    """[rows], prompt and target; on the CPU, where steps choose their rows."""

    @classmethod
    def from_facts(cls, facts: Sequence[EncodedFact], device: str) -> Rows:
        time, tokens = max(len(f.ids) for f in facts), max(f.length for f in facts)
        ids = torch.zeros(len(facts), time, dtype=torch.long)
        predictor, target = (torch.zeros(len(facts), tokens, dtype=torch.long) for _ in range(2))
        mask = torch.zeros(len(facts), tokens, dtype=torch.bool)
        floor = torch.full((len(facts), tokens), -torch.inf)
        for row, fact in enumerate(facts):
            ids[row, : len(fact.ids)] = torch.tensor(fact.ids)
            predictor[row, : fact.length] = torch.arange(fact.length) + fact.prompt_length - 1
            target[row, : fact.length] = torch.tensor(fact.target)
            mask[row, : fact.length] = True
            if fact.floor:
                floor[row, : fact.length] = torch.tensor(fact.floor)
        lengths = torch.tensor([len(fact.ids) for fact in facts])
        ids, predictor, target, mask, floor = (t.to(device) for t in (ids, predictor, target, mask, floor))
        return cls(ids, predictor, target, mask, floor, lengths)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def unwanted(self) -> Tensor:
        """[rows, tokens] bool: tokens that must not come back, whose loss has a floor and no limit."""
        return self.floor > -torch.inf

    @cached_property
    def wanted(self) -> Tensor:
        """[rows, tokens] bool: tokens to recall."""
        return self.mask & ~self.unwanted

    @property
    def all_tokens(self) -> int:
        """Tokens of all rows, prompts included."""
        return int(self.lengths.sum())


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows [K, b] that go through the model together, and their target tokens as flat lists of n."""

    rows: Tensor
    each: Tensor
    """[K * b], the rows adapter by adapter: the order of the forward pass."""
    predictors: Tensor
    """[n], indices of the states that predict the target tokens, in hidden states [K * b * time, d]."""
    targets: Tensor
    """[n]"""
    positions: Tensor
    """[n], the place of each target token in its target."""
    owners: Tensor
    """[n], the adapter (0..K-1) of each target token; rising."""
    samples: Tensor
    """[n], the row of each target token."""
    records: Samples
    """Groups the tokens by row and adapter."""
    floor: Tensor
    """[n], nats that the loss of an unwanted target token must reach; -infinity for one to recall."""
    mask: Tensor
    """[K, b, tokens] bool."""

    @cached_property
    def wanted(self) -> Tensor:
        """[n] bool: tokens to recall."""
        return self.floor == -torch.inf

    @classmethod
    def from_rows(cls, rows: Tensor, data: Rows) -> Batch:
        each = rows.flatten()
        mask = data.mask[each]
        start = torch.arange(len(each), device=each.device)[:, None] * data.ids.shape[1]
        owners = torch.arange(len(rows), device=each.device).repeat_interleave(rows.shape[1])[:, None]
        return cls(
            rows=rows,
            each=each,
            predictors=(start + data.predictor[each])[mask],
            targets=data.target[each][mask],
            positions=torch.arange(mask.shape[1], device=each.device).expand_as(mask)[mask],
            owners=owners.expand_as(mask)[mask],
            samples=each[:, None].expand_as(mask)[mask],
            records=Samples(torch.arange(len(each), device=each.device)[:, None].expand_as(mask)[mask], len(each)),
            floor=data.floor[each][mask],
            mask=mask.view(*rows.shape, -1),
        )

    def padded(self, values: Tensor) -> Tensor:
        """Values [n] of the target tokens as [K, b, tokens], zero in padding."""
        padded = torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device)
        return padded.masked_scatter(self.mask, values)

    def summed(self, values: Tensor) -> Tensor:
        """Sums over each adapter's target tokens: [n] -> [K]."""
        sums = torch.zeros(len(self.rows), dtype=values.dtype, device=values.device)
        return sums.index_add(0, self.owners, values)


def rows_per_step(count: int, config: TrainConfig) -> int:
    """How many of `count` rows each adapter sees in a step."""
    return config.batch_size if 0 < config.batch_size < count else count


def row_order(count: int, config: TrainConfig) -> Iterator[Tensor]:
    """Rows of each step: all of them, or batches of a new random order every epoch, or those of the curriculum.

    The last batch of an epoch is filled up from the next one, so that every step has the same number of rows.
    """
    size = rows_per_step(count, config)
    if config.method == "curriculum":
        yield from curriculum_rows(count, size, config.steps, boundaries=config.boundaries, seed=config.seed)
        return
    if size == count:
        while True:
            yield torch.arange(count)
    stream = torch.Generator().manual_seed(config.seed + _ORDER_STREAM)
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=stream)])
        yield waiting[:size]
        waiting = waiting[size:]
