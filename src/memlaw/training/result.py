"""What training reports: its progress, and how each adapter ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.side_effects import SideEffects
from memlaw.training.run import Run

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class StackProgress:
    """Where a stack stands after a step: enough for a progress bar."""

    step: int
    steps: int
    """Upper limit of steps among the adapters still training."""
    adapters: int
    loss: float
    """Mean training loss over target tokens and adapters, nats."""
    losses: tuple[tuple[int, float], ...]
    """(run, mean loss of its target tokens) for the adapters still training."""
    ordered: float
    """Share of the step's target tokens with p > 1/2."""
    stubborn: int
    """Target tokens of the step, over all adapters, with p <= 1/2."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the training of one adapter ended."""

    status: Status
    """finished; diverged: the loss became infinite or NaN, or ended clearly above where it started; failed: the
    gradient was zero at every step."""
    steps: int
    """Steps taken; for a diverged adapter, those until it was given up."""
    seconds: float
    """Wall time of the stack until this adapter left it."""
    loss_init: float
    loss_final: float | None
    """Mean nll over all target tokens, teacher-forced, without dropout."""
    recalled: bool
    """Whether every target token ended with nll < ln 2 - margin; what `train_adapter` returns also says whether the
    tokens decode to the targets (`other_text`)."""
    message: str = ""
    protection: float = 0.0
    """Weight of the predicted drift in the loss at the end: how strong a protection the facts left room for."""
    tokens_forwarded: int = 0
    """Tokens that steps, and checks of all rows between them, put through the model: prompts included, padding not."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained(Ending):
    """One adapter at the end of its training."""

    run: Run
    stack: AdapterStack
    """This adapter alone."""
    other_text: tuple[str, ...] = ()
    """Ids of the facts whose tokens do not decode to their targets, so that they are never recalled verbatim."""
    curve: tuple[float | None, ...] = ()
    """Share of the target tokens with p > 1/2 at evenly spaced steps, where they were recorded (`memlaw train`)."""
    side_effects: SideEffects | None = None
    """What it does to the base elsewhere, if that was asked for."""

    @property
    def rank(self) -> int:
        return self.run.rank

    @property
    def config(self) -> TrainConfig:
        return self.run.config

    @property
    def placement(self) -> Placement:
        return self.run.placement

    @property
    def parameters(self) -> int:
        """Effective parameters."""
        return self.placement.parameters(self.rank)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """The model with this adapter added."""
        with self.stack.attached(model):
            yield
