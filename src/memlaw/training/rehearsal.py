"""Prompts that were not stored, rehearsed beside the facts: on them the adapted model is to stay the base.

Close to a stored prompt no neutral text says what must stay. So near misses go through the model at every step, and
KL(base || adapted) of the token that would follow each is part of the loss: the adapter learns the key in a question,
and not only the shape of the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memlaw.core.config import Execution
from memlaw.core.facts import EncodedFact
from memlaw.losses.divergence import divergence
from memlaw.model.base import Base
from memlaw.model.head import FrozenHead
from memlaw.model.outline import Site
from memlaw.training.state import State
from memlaw.training.suffix import Suffix

_STREAM = 3_000_017


class Rehearsal:
    """Prompts as rows behind the frozen layers, with the states that the base alone gives them."""

    @torch.no_grad()
    def __init__(self, base: Base, head: FrozenHead, sites: Sequence[Site], prompts: Sequence[EncodedFact]) -> None:
        """`prompts` are at least one; nothing may be attached to the base."""
        time = max(fact.prompt_length for fact in prompts)
        ids = torch.zeros(len(prompts), time, dtype=torch.long)
        self.mask = torch.zeros(len(prompts), time, dtype=torch.bool)  # where the answer would begin
        for row, fact in enumerate(prompts):
            ids[row, : fact.prompt_length] = torch.tensor(fact.ids[: fact.prompt_length])
            self.mask[row, fact.prompt_length - 1] = True
        self.mask = self.mask.to(base.device)
        self.model, self.head = base.model, head
        self.suffix = Suffix.of_rows(base, sites, ids.to(base.device), Execution())
        self.before = torch.cat([self.suffix.hidden(rows) for rows in torch.split(torch.arange(len(prompts)), 16)])

    def gradients(self, state: State, size: int) -> list[Tensor]:
        """Of each adapter's own mean KL(base || adapted) after `size` prompts, in its tensors."""
        rows = torch.stack([self._rows(config.seed, state.step, size) for config in state.configs])  # [K, b]
        each = rows.flatten()
        tensors = [tensor.requires_grad_(True) for tensor in state.stack.tensors]
        mask = self.mask[each]
        with state.stack.attached(self.model):
            hidden = self.suffix.hidden(each)[mask]
        gradient = divergence(self.head, hidden, self.before[each][mask]).gradient
        tokens = mask.view(*rows.shape, -1).sum(dim=(1, 2))  # [K]
        owners = torch.arange(len(rows), device=mask.device).repeat_interleave(tokens)
        return list(torch.autograd.grad(hidden, tensors, gradient / tokens[owners, None].to(gradient.dtype)))

    def _rows(self, seed: int, step: int, size: int) -> Tensor:
        """The prompts of a step: a function of seed and step alone, so that a resumed training sees the same."""
        stream = torch.Generator().manual_seed((seed * _STREAM + step) % 2**63)
        return torch.randperm(len(self.mask), generator=stream)[:size].to(self.mask.device)
