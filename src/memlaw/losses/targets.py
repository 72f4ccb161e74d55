"""The target tokens of a batch: where they are predicted, and which sample of a packed row each belongs to."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.core.errors import ConfigError
from memlaw.losses.weights import Samples
from memlaw.losses.window import WindowState

IGNORED = -100
"""Label of positions that are not targets, as everywhere in transformers."""

SampleIds = Tensor | Sequence[Hashable]


class BatchKeywords(TypedDict, total=False):
    """The fields of `Batching`, as keywords."""

    position_ids: Tensor | None
    sample_ids: SampleIds | None
    state: WindowState | None
    shift: bool


@dataclass(frozen=True, eq=False)
class Batching:
    """How samples lie in the rows of a batch, and which samples they are."""

    position_ids: Tensor | None = None
    """[batch, time]; a sample begins where they do not increase by one."""
    sample_ids: SampleIds | None = None
    """[batch, time], or one for each row."""
    state: WindowState | None = None
    """Of sw, by sample id; None starts every window afresh."""
    shift: bool = True
    """Place t predicts labels[:, t + 1]; otherwise labels[:, t]."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The n target tokens of a batch, row after row and sample after sample."""

    place: Tensor
    """[n], the index in [batch * time] at which each is predicted."""
    token: Tensor
    """[n]"""
    samples: Samples
    row: Tensor
    """[n], the row of each in the batch."""
    shape: torch.Size
    """[batch, time]"""

    @classmethod
    def from_labels(cls, labels: Tensor, batching: Batching) -> Targets:
        """`labels` [batch, time], -100 at places that are not targets.

        A sample begins with each row, where `position_ids` do not increase by one, and where `sample_ids` [batch, time]
        change. Its first token would be predicted from another sample, so it is not a target.
        """
        begins = _begins(labels, batching.position_ids, batching.sample_ids)
        number = begins.flatten().cumsum(0) - 1
        ahead = F.pad(labels[:, 1:], (0, 1), value=IGNORED) if batching.shift else labels
        crosses = F.pad(begins[:, 1:], (0, 1), value=False)
        place = ((ahead != IGNORED) & ~crosses).flatten().nonzero()[:, 0]
        samples = Samples(number[place], int(begins.sum()))
        return cls(place, ahead.flatten()[place], samples, place // labels.shape[1], labels.shape)

    @property
    def positions(self) -> Tensor:
        """[n], how many places of the sequence after its sample's first target each token is.

        Places between targets (the user's turns of a chat) count, as in the paper; padding before a sample does not.
        """
        first = self.samples.ranks(torch.ones_like(self.place, dtype=torch.bool)) == 0
        return self.place - self.place[first][first.cumsum(0) - 1]

    def slots(self, state: WindowState, sample_ids: SampleIds) -> Tensor:
        """[n], the slot of each token's sample."""
        first = self.positions == 0
        if isinstance(sample_ids, Tensor):
            by_token = sample_ids[:, None] if sample_ids.dim() == 1 else sample_ids
            keys = by_token.to(first.device).expand(self.shape).flatten()[self.place[first]].tolist()
        else:
            keys = [sample_ids[row] for row in self.row[first].tolist()]
        return state.slots(keys).to(first.device)[first.cumsum(0) - 1]


def _begins(labels: Tensor, position_ids: Tensor | None, sample_ids: SampleIds | None) -> Tensor:
    """The first token of every sample: [batch, time] bool."""
    begins = torch.zeros_like(labels, dtype=torch.bool)
    begins[:, :1] = True
    if position_ids is not None:
        position_ids = _expanded("position_ids", position_ids, labels)
        begins[:, 1:] |= position_ids[:, 1:] != position_ids[:, :-1] + 1
    if isinstance(sample_ids, Tensor) and sample_ids.dim() == 2:
        sample_ids = _expanded("sample_ids", sample_ids, labels)
        begins[:, 1:] |= sample_ids[:, 1:] != sample_ids[:, :-1]
    elif sample_ids is not None and len(sample_ids) != len(labels):
        raise ConfigError(
            f"{len(sample_ids)} sample_ids for {len(labels)} rows: give one for each row, or one for each token."
        )
    return begins


def _expanded(name: str, ids: Tensor, labels: Tensor) -> Tensor:
    if ids.shape not in {labels.shape, (1, labels.shape[1])}:
        raise ConfigError(
            f"{name} have the shape {list(ids.shape)} and the labels {list(labels.shape)}: give one for each label."
        )
    return ids.to(labels.device).expand_as(labels)
