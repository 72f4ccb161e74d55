"""The settings of a training run: one home for each setting, with its default, range and meaning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from memlaw.core.errors import ConfigError
from memlaw.core.recall import LN2

Method = Literal["sft", "ot", "sw", "curriculum"]

Schedule = Literal["linear", "constant"]

Rule = Literal["zero", "fallback"]

Until = Literal["budget", "recalled"]

Init = Literal["peft", "paper"]

Scaling = Literal["constant", "lora", "rslora"]

METHODS: tuple[str, ...] = get_args(Method)

CURRICULUM_RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the samples that the curriculum exposes one after the other (arXiv 2605.30260)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything about one training run that changes its outcome: one home for each setting, its default and its range.

    Raises ConfigError for a value out of range.
    """

    method: Method = "sft"
    """Token weights of the loss (MemFT): sft = all target tokens; ot = those with p <= 1/2; sw = those at and behind
    each record's first error; curriculum = ot, on more and more of the records."""
    rule: Rule = "zero"
    """What ot does when no token is left under the threshold: zero gradient, or fall back to the sft loss."""
    steps: int = 1000
    """Optimizer steps: the whole budget, or the upper limit under until="recalled"."""
    until: Until = "budget"
    """budget: exactly `steps` (law cells); recalled: stop once every target token is ordered with `margin`."""
    margin: float = 0.0
    """Nats under ln 2 that every token must reach; ot keeps training a token until it does."""
    position: float = 0.0
    """lambda: the n disordered tokens of a record get weights exp(-lambda * rank / (n - 1)); 0 = all alike."""
    focus: float = 0.0
    """All tokens of a record with n disordered ones get the weight n^-focus (memlaw's own); 0 = all records alike."""
    boundaries: tuple[int, ...] = (20, 40, 60, 80, 300)
    """Of the curriculum: epochs until which 20, 40, 60, 80 and 100% of the records are exposed. `steps` is the budget,
    so they count by their proportions: the last epoch ends with the last step."""
    learning_rate: float = 2e-2
    """AdamW step size at the first step."""
    schedule: Schedule = "linear"
    """linear: to 0 over `steps`, no warm-up (the published recipe); constant."""
    batch_size: int = 0
    """Records per optimizer step, in a seeded order; 0 = all of them."""
    clip: float = 1.0
    """Largest gradient norm of one adapter; 0 = no clipping."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    dropout: float = 0.0
    """Dropout on the adapter's input."""
    scale: float = 4.0
    """The factor before x A B, up to `scaling`."""
    scaling: Scaling = "constant"
    """constant: the factor is `scale` at every rank, so that rank is the only change of a sweep; lora: scale / rank and
    rslora: scale / sqrt(rank), where `scale` is what PEFT calls lora_alpha."""
    init: Init = "peft"
    """A ~ U(-bound, bound): peft 1/sqrt(d_in), paper 1/sqrt(rank). B is zero."""
    seed: int = 42
    """Of the initial weights, the data order and dropout."""

    def factor(self, rank: int) -> float:
        """What x A B is multiplied by in an adapter of this rank."""
        return self.scale / {"constant": 1.0, "lora": rank, "rslora": math.sqrt(rank)}[self.scaling]

    def __post_init__(self) -> None:
        if isinstance(self.boundaries, list):  # as JSON and YAML have it
            object.__setattr__(self, "boundaries", tuple(self.boundaries))
        for name, (allowed, wanted) in _TRAIN_SETTINGS.items():
            value = getattr(self, name)
            try:
                fits = not isinstance(value, bool) and allowed(value)
            except TypeError:  # not a number at all
                fits = False
            if not fits:
                raise ConfigError(f"Setting {name} is {value!r}: choose {wanted}.")


def _one_of(kind: Any) -> tuple[Callable[[Any], bool], str]:
    known = get_args(kind)
    return known.__contains__, f"{', '.join(known[:-1])} or {known[-1]}"


def _whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and low <= value <= high


def _rising(values: Any) -> bool:
    return isinstance(values, tuple) and all(_whole(b, a + 1) for a, b in itertools.pairwise((0, *values)))


# Comparisons with infinity keep NaN out too.
_TRAIN_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "method": _one_of(Method),
    "rule": _one_of(Rule),
    "steps": (lambda steps: _whole(steps, 1), "a whole number from 1 up"),
    "until": _one_of(Until),
    "margin": (lambda nats: 0 <= nats < LN2, "nats from 0 to below ln 2 (0.693): no loss can be further under it"),
    "position": (lambda decay: 0 <= decay < math.inf, "a number above 0 (published: 2), or 0 to turn it off"),
    "focus": (lambda power: 0 <= power < math.inf, "a number above 0, or 0 to turn it off"),
    "boundaries": (
        lambda ends: _rising(ends) and len(ends) == len(CURRICULUM_RATIOS),
        f"{len(CURRICULUM_RATIOS)} rising whole numbers of epochs, one for each share of the curriculum, such as "
        "20, 40, 60, 80, 300",
    ),
    "learning_rate": (lambda rate: 0 < rate < math.inf, "a number above 0"),
    "schedule": _one_of(Schedule),
    "batch_size": (lambda rows: _whole(rows, 0), "a whole number of records from 1 up, or 0 for all of them"),
    "clip": (lambda norm: 0 <= norm < math.inf, "a gradient norm above 0, or 0 for no clipping"),
    "weight_decay": (lambda decay: 0 <= decay < math.inf, "a number from 0 up"),
    "dropout": (lambda share: 0 <= share < 1, "a share from 0 to below 1"),
    "scale": (lambda scale: 0 < scale < math.inf, "a number above 0"),
    "scaling": _one_of(Scaling),
    "init": _one_of(Init),
    "seed": (lambda seed: _whole(seed, 0, 2**32 - 1), "a whole number from 0 to 4294967295"),
}
"""Setting -> which values are allowed, and what to choose in a person's words."""

UNTIL_RECALLED = TrainConfig(method="ot", until="recalled", margin=0.1, steps=2000, batch_size=16)
"""How an adapter is trained that is to be used: the steps go to tokens not yet recalled, and it stops when all are.
The step size has to fall for the last tokens to settle, so more steps take longer; docs/log.md has the figures."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training is run: what it costs in time and memory, never what it computes. Raises ConfigError."""

    compiled: bool = False
    """Compile the layers above the last adapted one (`torch.compile`), for trainings of thousands of steps."""
    evict_prefix: bool = False
    """Keep the layers below the first adapted one in main memory, off the accelerator."""
    prefix_cache: str | None = None
    """A directory that keeps what those layers make of the facts, for the next training on them."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints of a stack in training."""

    def __post_init__(self) -> None:
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ConfigError(f"Setting checkpoint_minutes is {self.checkpoint_minutes!r}: choose minutes from 0 up.")


PAPER = TrainConfig(steps=2000, learning_rate=1e-2, scale=1.0, dropout=0.1, init="paper", rule="fallback")
"""The published long-context recipe (arXiv 2605.30260 and the configuration beside it); its placement is `mlp@L`."""

PRESETS = {"default": UNTIL_RECALLED, "paper": PAPER}
