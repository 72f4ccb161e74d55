"""The frozen head at 8,192 tokens x 151,936 x 4,096 in bfloat16: one loss and gradient, against what else there is.

Every side gives the sum of the losses and its gradient in the hidden states, and is held to the gradient of the float32
loss before any time is taken. memlaw's head is frozen; the others are timed frozen and, as `... trained`, with the
gradient of the weights as well. `floor` is two products (loss and gradient) at the rate measured beside them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import medians
from torch import Tensor

from gpu.section import Peak, Section
from memlaw.losses import memft_head_loss
from memlaw.losses.head_pass import head_pass
from memlaw.model.head import FrozenHead

Side = Callable[[], Tensor]
"""One pass; returns the gradient in the hidden states [n, d]."""

LossOf = Callable[[Tensor, Tensor, Tensor], Tensor]
"""loss(states [n, d], weight [vocab, d], targets [n]): the sum of all losses."""


class Problem:
    def __init__(self, section: Section) -> None:
        rows, vocabulary, width = (96, 640, 32) if section.small else (8192, 151_936, 4096)
        options: Any = {"device": section.device, "dtype": section.dtype}
        torch.manual_seed(0)
        self.device = section.device
        self.weight = torch.randn(vocabulary, width, **options).mul_(3 / width**0.5)
        self.hidden = torch.randn(rows, width, **options)
        self.targets = torch.randint(vocabulary, (rows,), device=section.device)
        self.some = (torch.rand(rows, device=section.device) < 0.1).float()

    def memlaw(self) -> Tensor:
        states = self.hidden.clone().requires_grad_(True)
        loss = memft_head_loss(
            states[None], self.weight, self.targets[None], reduction="sum", method="sft", shift=False
        )  # fmt: skip
        return torch.autograd.grad(loss, states)[0]

    def memlaw_tenth(self) -> Tensor:
        """With a tenth of the tokens still disordered, as in most steps of a training."""
        head = FrozenHead(self.weight)
        return head_pass(head, self.hidden, self.targets, lambda _nll, _hit, rows: self.some[rows]).gradient

    def other(self, loss_of: LossOf, *, trained: bool) -> Tensor:
        states = self.hidden.clone().requires_grad_(True)
        weight = self.weight.detach().requires_grad_(trained)
        loss = loss_of(states, weight, self.targets)
        return torch.autograd.grad(loss, [states, weight] if trained else [states])[0]

    def product(self) -> Side:
        out = self.hidden.new_empty(len(self.hidden), len(self.weight))
        return lambda: torch.mm(self.hidden, self.weight.T, out=out)


def naive(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(states, weight), targets, reduction="sum")


def naive_float32(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As transformers computes its loss."""
    return F.cross_entropy(F.linear(states, weight).float(), targets, reduction="sum")


def torch_chunked(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = F.linear_cross_entropy(states, weight, targets, reduction="sum")  # type: ignore[attr-defined]
    return loss


def liger(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, states, targets)
    return loss


def cce(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(states, weight, targets, reduction="sum")
    return loss


def others(device: str) -> dict[str, LossOf]:
    """What is here to compare with: kernels of other libraries run on a GPU alone."""
    found: dict[str, LossOf] = {"naive": naive, "naive float32": naive_float32}
    if hasattr(F, "linear_cross_entropy"):
        found["torch"] = torch_chunked
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        found["liger"] = liger
    if device == "cuda" and importlib.util.find_spec("cut_cross_entropy"):
        found["cce"] = cce
    return found


def first_call(side: Side, wanted: Tensor | None, device: str, allowed: float) -> Mapping[str, Any]:
    """Compiles what is to be compiled; the error of the gradient, and the peak of memory of a second call."""
    gradient = side()
    found: dict[str, Any] = {}
    if wanted is not None:
        error = float((gradient.double() - wanted).norm() / wanted.norm())
        found = {"gradient_error": error, "ok": error < allowed}
    del gradient
    peak = Peak(device)
    side()
    return found | peak.read()


def times(problem: Problem, sides: Mapping[str, Side], repeats: int) -> Mapping[str, Any]:
    seconds = medians({"product": problem.product(), **sides}, repeats=repeats, device=problem.device)
    floors = {"floor_frozen": 2 * seconds["product"], "floor_trained": 3 * seconds["product"]}
    found: dict[str, Any] = {f"{name} ms": 1e3 * taken for name, taken in (seconds | floors).items()}
    found["against memlaw"] = {name: taken / seconds["memlaw"] for name, taken in seconds.items() if name in sides}
    return found


def run(section: Section) -> None:
    problem = Problem(section)
    wanted = problem.other(naive_float32, trained=False).double()
    allowed = 1e-4 if section.small else 3e-2
    dropping = 0.2  # cce leaves out what is small in the gradient
    waiting: dict[str, tuple[Side, Tensor | None]] = {
        "memlaw": (problem.memlaw, wanted),
        "memlaw tenth": (problem.memlaw_tenth, None),
    }
    for name, loss_of in others(section.device).items():
        for trained in (False, True):
            side = partial(problem.other, loss_of, trained=trained)
            waiting[f"{name} trained" if trained else name] = (side, wanted)
    late = {name: waiting.pop(name) for name in list(waiting) if name.startswith("cce")}  # the longest to compile
    repeats = 2 if section.small else 7
    usable: dict[str, Side] = {}
    for group, what in ((waiting, "times"), (late, "times with cce")):
        error = dropping if group is late else allowed
        for name, (side, expected) in group.items():
            if section.case(name, partial(first_call, side, expected, section.device, error), takes=10) is not None:
                usable[name] = side
        if group and "memlaw" in usable:
            section.case(what, partial(times, problem, dict(usable), repeats), takes=10)
