"""The settings of a training run: one home for each setting, with its default, range and meaning.

The first sentence below a setting is also its `--help`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from memlaw.core.canonical import to_dict
from memlaw.core.precision import Precision
from memlaw.core.recall import LN2
from memlaw.core.settings import Choose, settings

Method = Literal["sft", "ot", "sw", "curriculum"]
Schedule = Literal["linear", "constant", "share"]
Rule = Literal["zero", "fallback"]
Until = Literal["budget", "recalled"]
Init = Literal["peft", "paper"]
Scaling = Literal["constant", "lora", "rslora"]
Optimizer = Literal["adamw", "muon"]

METHODS: tuple[str, ...] = get_args(Method)
CURRICULUM_RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Shares of the samples that the curriculum exposes in turn (arXiv 2605.30260)."""


def _number(value: Any) -> Any:
    """Python counts True as 1, and pydantic reads "1" as 1; as a setting, either is a mistake."""
    if isinstance(value, bool | str):
        raise ValueError("not a number")
    return value


def _increasing(values: Any) -> Any:
    if not isinstance(values, list | tuple) or not all(type(end) is int for end in values):
        raise ValueError("not whole numbers")
    if any(b <= a for a, b in itertools.pairwise((0, *values))):
        raise ValueError("not increasing")
    return values


_EPOCHS = Choose(
    f"{len(CURRICULUM_RATIOS)} increasing whole numbers of epochs, one for each share of the curriculum, such as "
    "20, 40, 60, 80, 300",
    unit="epochs",
)

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0), Choose("a number above 0")]
Count = Annotated[Whole, Field(ge=1), Choose("a whole number from 1 up")]
Rate = Annotated[Number, Field(ge=0), Choose("a number above 0, or 0 to have it chosen")]
Seed = Annotated[Whole, Field(ge=0, lt=2**32), Choose("a whole number from 0 to 4294967295")]
Nats = Annotated[
    Number,
    Field(ge=0, lt=LN2),
    Choose("nats from 0 to below ln 2 (0.693), since no loss is below 0", unit="nats"),
]
Epochs = Annotated[
    tuple[int, ...], BeforeValidator(_increasing), Field(min_length=len(CURRICULUM_RATIOS), max_length=5), _EPOCHS
]


@settings
class Weighting:
    """How MemFT weighs target tokens: the settings that all trainers of memlaw share."""

    rule: Rule = "zero"
    """What ot does once every token is above the threshold: zero gradient, or fall back to the sft loss."""
    margin: Nats = 0.0
    """How far below ln 2 the loss of every target token must fall; ot trains a token until it does."""
    position: Annotated[Number, Field(ge=0), Choose("a number above 0 (published: 2), or 0 to turn it off")] = 0.0
    """lambda: the n disordered tokens of a record get weights exp(-lambda * rank / (n - 1)); 0 = all alike."""
    focus: Annotated[Number, Field(ge=0), Choose("a number above 0, or 0 to turn it off")] = 0.0
    """All tokens of a record with n disordered ones get the weight n^-focus (memlaw's own); 0 = all records alike."""


@settings
class Recipe(Weighting):
    """How an adapter is trained, apart from method and seed: what all cells of a probe share."""

    steps: Count = 1000
    """Optimizer steps; an upper limit if training stops once everything is recalled."""
    until: Until = "budget"
    """Stop after all steps (budget), or as soon as every target token is ordered by the margin (recalled). Cells of a
    law need budget."""
    anneal: Annotated[Number, Field(ge=0), Choose("a number above 0, or 0 to turn it off")] = 0.0
    """ot trains the tokens above (ln 2 - margin)(1 - u^anneal), where a share u of the target tokens is not ordered by
    the margin yet: all of them at first, in the end those above ln 2 - margin; 0 = these throughout."""
    boundaries: Epochs = (20, 40, 60, 80, 300)
    """Of the curriculum: epochs until which 20, 40, 60, 80 and 100% of the records are exposed. Since `steps` is the
    budget, only their proportions count: the last epoch ends with the last step."""
    optimizer: Optimizer = "adamw"
    """adamw; muon: the momentum of A and of B with its singular values made alike (Newton-Schulz)."""
    momentum: Annotated[Number, Field(ge=0, lt=1), Choose("a number from 0 to below 1")] = 0.9
    """Of muon: how much of the direction of the last step stays. More helps where the rank hardly holds the facts and
    every step sees all of them (0.95, `batch_size` 0), and takes longer elsewhere."""
    learning_rate: Rate = 2e-2
    """Initial learning rate; 0 = auto: the smallest of several that gets far in a few steps."""
    schedule: Schedule = "linear"
    """linear: to 0 over `steps`, no warm-up (the published recipe); constant; share: by the square root of the share of
    target tokens that are not ordered by the margin yet (an adapter that goes on: of the most it had), so that it ends
    with the work and not with the budget."""
    average: Annotated[Whole, Field(ge=0), Choose("a whole number from 1 up, or 0 for none")] = 0
    """What counts are the weights averaged over the steps t so far, in proportion to about t^average; 0 = the last."""
    batch_size: Annotated[
        Whole, Field(ge=0), Choose("a whole number of records from 1 up, or 0 for all of them", unit="records")
    ] = 0
    """Records per optimizer step, in a seeded order."""
    clip: Annotated[Number, Field(ge=0), Choose("a gradient norm above 0, or 0 for no clipping")] = 1.0
    """Largest gradient norm of each adapter; 0 = no clipping."""
    weight_decay: Annotated[Number, Field(ge=0), Choose("a number from 0 up")] = 0.0
    """Decoupled weight decay."""
    protect: Annotated[Number, Field(ge=0), Choose("a number above 0, or 0 to turn it off")] = 0.0
    """Weight in the loss of what the adapter will cost the model on neutral text: the KL divergence from the base, in
    nats a token, as its weights predict it. It halves every 32 steps, or every 4 while no fact comes closer, so that
    facts that do not fit otherwise go first in the end; 0 = no protection."""
    rehearse: Annotated[
        Whole, Field(ge=0), Choose("a whole number of prompts from 1 up, or 0 for none", unit="prompts")
    ] = 0
    """Near misses (prompts shaped like the stored ones that were not stored) in every step, on which the adapter is to
    change nothing; 0 = none."""
    dropout: Annotated[Number, Field(ge=0, lt=1), Choose("a share from 0 to below 1")] = 0.0
    """Dropout on the adapter's input."""
    scale: Positive = 4.0
    """The factor before x A B, up to `scaling`."""
    scaling: Scaling = "constant"
    """constant: the factor is `scale` at every rank, so that a sweep changes the rank alone; lora: scale / rank;
    rslora: scale / sqrt(rank), where `scale` is lora_alpha in PEFT."""
    init: Init = "peft"
    """A ~ U(-bound, bound): peft 1/sqrt(d_in), paper 1/sqrt(rank). B is zero."""

    def factor(self, rank: int) -> float:
        """The factor before x A B in an adapter of this rank."""
        return self.scale / {"constant": 1.0, "lora": rank, "rslora": math.sqrt(rank)}[self.scaling]


@settings
class TrainConfig(Recipe):
    """All settings that change the outcome of a training. Raises ConfigError for a value out of range."""

    method: Method = "sft"
    """Target tokens to train on: all (sft), those with p <= 1/2 (ot), those from each record's first error on (sw), or
    as ot, on a growing share of the records (curriculum). They set the token weights of the loss (MemFT)."""
    seed: Seed = 42
    """Seed of the initial weights, the data order and dropout."""
    served_as: tuple[Precision, ...] = ()
    """Precisions of the base's weights in which the facts must come back, in each of them: every step sees its records
    in each; empty = the weights as they were loaded."""


AUTO = 0.0
"""The learning rate that leaves the choice to the training."""

ADDED = ("anneal", "optimizer", "momentum", "average", "protect", "rehearse", "served_as")
"""Settings that came after the first cells and adapters were trained: their defaults are what was done before."""

_DEFAULTS = to_dict(TrainConfig())


def identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that identify a training: all but the added ones that have their default, so old keys stay."""
    values = to_dict(config)
    return {name: value for name, value in values.items() if name not in ADDED or value != _DEFAULTS[name]}


UNTIL_RECALLED = TrainConfig(
    method="ot",
    until="recalled",
    margin=0.1,
    anneal=0.25,
    steps=3000,
    batch_size=32,
    optimizer="muon",
    learning_rate=AUTO,
    schedule="share",
    average=8,
    protect=3000.0,
)
"""How an adapter is trained for use: steps go to tokens that are not recalled yet, training stops once all are, and the
model is protected meanwhile. Nothing follows the budget, so `steps` is a limit and costs nothing if it is generous."""

ADAMW = replace(UNTIL_RECALLED, anneal=0.0, steps=2000, batch_size=16, optimizer="adamw", schedule="linear", average=0)
"""The usual optimizer and schedule. The last tokens settle only when the rate is low, so more `steps` take longer."""

PAPER = TrainConfig(steps=2000, learning_rate=1e-2, scale=1.0, dropout=0.1, init="paper", rule="fallback")
"""The published long-context recipe (arXiv 2605.30260 and its configuration); its placement is `mlp@L`."""

PRESETS = {"default": UNTIL_RECALLED, "adamw": ADAMW, "paper": PAPER}


@settings
class Execution:
    """How a training runs: settings that change its time and memory, not its result. Raises ConfigError."""

    compiled: bool = False
    """Compile the layers above the last adapted one; worthwhile for thousands of steps. Uses `torch.compile`."""
    evict_prefix: bool = False
    """Keep the layers below the first adapted one in main memory, off the accelerator."""
    prefix_cache: str | None = None
    """Directory that caches the output of the layers below the adapters, for later runs on the same facts."""
    checkpoint_minutes: Annotated[Number, Field(ge=0), Choose("minutes from 0 up", unit="minutes")] = 10.0
    """Minutes between checkpoints of a training run."""
