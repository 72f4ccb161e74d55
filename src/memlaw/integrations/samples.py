"""The sample of each token in a trainer's batch, and the windows of sw across steps, processes and checkpoints.

A sample is identified by a hash of its tokens. So no extra column has to survive collators and `remove_unused_columns`,
and shuffling, packing and resuming do not change its id.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from memlaw.core.errors import ConfigError
from memlaw.integrations.step import processes
from memlaw.losses import IGNORED, WindowState

NO_SAMPLE = 0


def sample_ids(inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """The id of each token's sample, an integer that is the same in every batch: [batch, time].

    A row is one sample, or several if its `position_ids` do not increase by one throughout. Tokens that
    `attention_mask` leaves out, and those after the last target, do not change the id. Raises ConfigError.
    """
    if not isinstance(tokens := inputs.get("input_ids"), Tensor):
        raise ConfigError(
            "Method sw identifies a sample by its tokens, but this batch has no input_ids: keep them in the inputs of "
            "the model, or use method ot."
        )
    mask = inputs.get("attention_mask")
    real = torch.ones_like(tokens) if mask is None or mask.shape != tokens.shape else mask
    positions = inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
    begins = positions.expand_as(tokens).diff(dim=1) != 1
    ids = torch.zeros_like(tokens)
    for row in range(len(tokens)):
        starts = [0, *(begins[row].nonzero()[:, 0] + 1).tolist(), tokens.shape[1]]
        for start, end in itertools.pairwise(starts):
            span = slice(start, end)
            ids[row, span] = _digest(tokens[row, span], real[row, span], labels[row, span])
    return ids


def _digest(tokens: Tensor, real: Tensor, labels: Tensor) -> int:
    """A 63-bit hash of the unmasked tokens up to the last target; NO_SAMPLE without any target."""
    targets = (labels != IGNORED).nonzero()
    if not len(targets):
        return NO_SAMPLE
    end = int(targets[-1]) + 1
    content = tokens[:end][real[:end].bool()].cpu().numpy().astype("<i8").tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def share_windows(state: WindowState, ids: Tensor) -> None:
    """After a step of the samples `ids`, exchange their windows, so that every process has those of all."""
    if processes() == 1:
        return
    ours = sorted({*ids.flatten().tolist()} - {NO_SAMPLE})
    slots = state.slots(ours)
    everyone: list[Any] = [None] * processes()
    dist.all_gather_object(everyone, (ours, state.anchor[slots].tolist(), state.unmoved[slots].tolist()))
    for theirs, anchor, unmoved in everyone:
        slots = state.slots(theirs)
        state.anchor[slots] = torch.tensor(anchor, device=slots.device)
        state.unmoved[slots] = torch.tensor(unmoved, device=slots.device)


def windows_to_json(state: WindowState) -> dict[str, list[int]]:
    """`state_dict` as plain lists, for the state file of a trainer."""
    return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in state.state_dict().items()}


def windows_from_json(state: WindowState, saved: Mapping[str, list[int]]) -> None:
    """Inverse of `windows_to_json`."""
    tensors = {name: torch.tensor(saved[name], dtype=torch.long) for name in ("anchor", "unmoved")}
    state.load_state_dict({**tensors, "ids": saved["ids"]})
