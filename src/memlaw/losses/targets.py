"""The target tokens of a batch: where they are predicted, and which sample of a packed row each belongs to."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.core.errors import ConfigError
from memlaw.losses.weights import Samples
from memlaw.losses.window import WindowState

IGNORED = -100
"""Label of positions that are not targets, as everywhere in transformers."""

SampleIds = Tensor | Sequence[Hashable]


@dataclass(frozen=True, eq=False)
class Targets:
    """The n target tokens of a batch, row after row and sample after sample."""

    place: Tensor
    """[n], where each is predicted: an index into [batch * time]."""
    token: Tensor
    """[n]"""
    samples: Samples
    row: Tensor
    """[n], its row in the batch."""
    shape: torch.Size
    """[batch, time]"""

    @classmethod
    def of(cls, labels: Tensor, position_ids: Tensor | None, sample_ids: SampleIds | None, *, shift: bool) -> Targets:
        """`labels` [batch, time] with -100 where there is no target; with `shift`, place t predicts labels[:, t + 1].

        A sample begins with each row, where `position_ids` [batch, time] do not go on by one, and where `sample_ids`
        [batch, time] change. Its first token is predicted from another sample, so it is no target.
        """
        begins = _begins(labels, position_ids, sample_ids)
        number = begins.flatten().cumsum(0) - 1
        ahead = F.pad(labels[:, 1:], (0, 1), value=IGNORED) if shift else labels
        crosses = F.pad(begins[:, 1:], (0, 1), value=False)
        place = ((ahead != IGNORED) & ~crosses).flatten().nonzero()[:, 0]
        samples = Samples(number[place], int(begins.sum()))
        return cls(place, ahead.flatten()[place], samples, place // labels.shape[1], labels.shape)

    @property
    def positions(self) -> Tensor:
        """[n], the place of each token among its sample's targets, from 0."""
        return self.samples.ranks(torch.ones_like(self.place, dtype=torch.bool))

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
    """Where a sample begins: [batch, time] bool."""
    begins = torch.zeros_like(labels, dtype=torch.bool)
    begins[:, :1] = True
    if position_ids is not None:
        position_ids = _expanded("position_ids", position_ids, labels)
        begins[:, 1:] |= position_ids[:, 1:] != position_ids[:, :-1] + 1
    if isinstance(sample_ids, Tensor) and sample_ids.dim() == 2:
        sample_ids = _expanded("sample_ids", sample_ids, labels)
        begins[:, 1:] |= sample_ids[:, 1:] != sample_ids[:, :-1]
    elif sample_ids is not None and len(sample_ids) != len(labels):
        raise ConfigError(f"{len(sample_ids)} sample_ids for {len(labels)} rows: give one a row, or one a token.")
    return begins


def _expanded(name: str, ids: Tensor, labels: Tensor) -> Tensor:
    if ids.shape not in {labels.shape, (1, labels.shape[1])}:
        raise ConfigError(
            f"{name} have the shape {list(ids.shape)}, the labels {list(labels.shape)}: they go together."
        )
    return ids.to(labels.device).expand_as(labels)
