"""MemFT-SW: a window that slides along each sample with its first error (arXiv 2605.30260, section 4).

    w_t = sigmoid(kappa (L_t - L_crit)) * { exp(-max(t - a, 0) / tau)   for t - a < W
                                          { floor                       beyond

with t the place of a token in the sequence of its sample, targets or not, and the anchor a, the place of the first
target that is not the argmax; without an error the second factor is 1. W grows
from the third successive step of a sample at which its anchor stays in place.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.core.errors import ConfigError
from memlaw.core.recall import LN2

# As published: kappa, tau and W as above, and how W grows while the anchor stays in place.
KAPPA = 10.0
TAU = 20.0
WIDTH = 50.0
FLOOR = 0.01
PATIENCE = 3
GROWTH = 0.5
WIDEST = 4.0

_NO_ERROR = -1
_NOT_YET = torch.iinfo(torch.long).max


def expansion(unmoved: Tensor) -> Tensor:
    """min(1 + 0.5 * max(unmoved - 2, 0), 4): 1.5 at the third successive step without a move, 4 from the eighth on."""
    return (1 + GROWTH * (unmoved - PATIENCE + 1).clamp(min=0)).clamp(max=WIDEST)


def window_factor(distance: Tensor, unmoved: Tensor) -> Tensor:
    """The factor of a token at `distance` = t - a from an anchor that has not moved for `unmoved` steps: [n]."""
    decay = torch.exp(-distance.clamp(min=0) / TAU)
    return torch.where(distance < WIDTH * expansion(unmoved), decay, FLOOR)


class WindowState:
    """What sw remembers of each sample from step to step, in one slot for each sample.

    A step of a sample is an optimizer step that sees it, so shuffling and sampling do not disturb the count. Slots are
    addressed by integer tensors; `slots` assigns them to sample ids, which may be any hashable. Under data parallelism
    each process remembers the samples it has seen.
    """

    def __init__(self, samples: int = 0, device: torch.device | str = "cpu") -> None:
        self.anchor = torch.full((samples,), _NO_ERROR, dtype=torch.long, device=device)
        """[slots] position of the first error at the sample's last step; -1 without an error."""
        self.unmoved = torch.zeros(samples, dtype=torch.long, device=device)
        """[slots] successive steps at which the anchor was where it was at the step before."""
        self._slot_of: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self.anchor)

    def slots(self, ids: Iterable[Hashable]) -> Tensor:
        """The slot of each sample id, [ids]; a new id gets a new slot."""
        ids = list(ids)
        new = [key for key in dict.fromkeys(ids) if key not in self._slot_of]
        self._slot_of.update(zip(new, range(len(self), len(self) + len(new)), strict=True))
        self.anchor = F.pad(self.anchor, (0, len(new)), value=_NO_ERROR)
        self.unmoved = F.pad(self.unmoved, (0, len(new)))
        return torch.tensor([self._slot_of[key] for key in ids], dtype=torch.long, device=self.anchor.device)

    def to(self, device: torch.device | str) -> WindowState:
        """Moves the state in place and returns it."""
        self.anchor, self.unmoved = self.anchor.to(device), self.unmoved.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Integer tensors `anchor` and `unmoved` [slots], and `ids`, those of the last slots."""
        return {"anchor": self.anchor.clone(), "unmoved": self.unmoved.clone(), "ids": list(self._slot_of)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; without `ids`, slots are addressed by integer tensors alone. Raises ConfigError."""
        try:
            anchor, unmoved, ids = state["anchor"], state["unmoved"], list(state.get("ids", ()))
        except KeyError as missing:
            raise ConfigError(
                f"This is not the state of a sliding window: {missing} is missing. Pass what `state_dict` returned."
            ) from None
        if anchor.shape != unmoved.shape or anchor.dim() != 1 or len(ids) > len(anchor):
            raise ConfigError(
                f"The state of the sliding window is inconsistent: {list(anchor.shape)} anchors, "
                f"{list(unmoved.shape)} counts and {len(ids)} sample ids. Start from a fresh WindowState."
            )
        device = self.anchor.device
        self.anchor, self.unmoved = (tensor.to(device, torch.long, copy=True) for tensor in (anchor, unmoved))
        self._slot_of = {key: len(anchor) - len(ids) + place for place, key in enumerate(ids)}


class WindowPass:
    """sw weights of n target tokens in one pass; `head_pass` can call it as its `weigh`.

    Tokens are ordered by sample, and by position within a sample. Tokens before the first error have the factor 1, so
    the weights of a chunk depend on the chunks before it and on no later one. An anchor that stays in place widens the
    window at the same step. The state does not change before `commit`.
    """

    def __init__(self, state: WindowState, slots: Tensor, positions: Tensor, *, critical: Tensor | float = LN2) -> None:
        """`slots` [n], the slot of each token's sample; -1 for tokens of another method, whose weight is 1.

        `positions` [n], places in the sequence of the sample, counted from anywhere; `critical` in nats, one for all
        tokens or [n].
        """
        self.state = state.to(slots.device)
        self.slots, self.positions, self.critical = slots, positions, critical
        begins = torch.ones_like(slots, dtype=torch.bool)
        begins[1:] = (slots[1:] != slots[:-1]) | (positions[1:] <= positions[:-1])
        self.sample = begins.cumsum(0) - 1
        self.sample_slots = slots[begins]
        known = self.sample_slots.clamp(min=0)
        self.last_anchor, self.last_unmoved = state.anchor[known], state.unmoved[known]
        self.anchor = torch.full_like(self.sample_slots, _NOT_YET)

    @torch.no_grad()
    def __call__(self, nll: Tensor, hit: Tensor, rows: slice) -> Tensor:
        """Weights [m] of the tokens `rows`, from nll [m] in nats and top-1 hits [m]. Call it in order, once a row."""
        sample, position, ours = self.sample[rows], self.positions[rows], self.slots[rows] >= 0
        errors = torch.where(hit, _NOT_YET, position)
        self.anchor.scatter_reduce_(0, sample, errors, "amin")
        distance = (position - self.anchor[sample]).to(nll.dtype)
        critical = self.critical[rows] if isinstance(self.critical, Tensor) else self.critical
        base = torch.sigmoid(KAPPA * (nll - critical)).to(nll.dtype)
        return torch.where(ours, base * window_factor(distance, self._unmoved(sample)), 1.0)

    def commit(self) -> None:
        """Ends the step: the state remembers where the first error of each sample was."""
        ours = self.sample_slots >= 0
        slots = self.sample_slots[ours]
        self.state.anchor[slots] = self.anchor.where(self.anchor != _NOT_YET, _NO_ERROR)[ours]
        self.state.unmoved[slots] = self._unmoved(torch.arange(len(ours), device=ours.device))[ours]

    def _unmoved(self, sample: Tensor) -> Tensor:
        stays = self.anchor[sample] == self.last_anchor[sample]
        return torch.where(stays, self.last_unmoved[sample] + 1, 0)
