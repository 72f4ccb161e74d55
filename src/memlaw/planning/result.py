"""The parts of a plan: the rank, its uncertainty, alternatives, and the cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memlaw.core.canonical import to_dict
from memlaw.law import Axis, Form, LawFit
from memlaw.planning.target import Target

# Per parameter, in float32: the weight itself; its gradient, momentum and average over the steps.
_BYTES = 4
_OPTIMIZER_BYTES = 12


@dataclass(frozen=True)
class RankRange:
    """A rank and its 95% interval, rounded outward. None stands for a rank above the largest this placement allows."""

    value: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True)
class RankChance:
    """The probability that a rank meets the target."""

    rank: int
    probability: float


@dataclass(frozen=True)
class LossNeeded:
    """The mean loss at which the target is met with probability 1/2."""

    nats: float
    """Nats per target token."""
    why: str
    """Where the number comes from, in words."""


@dataclass(frozen=True)
class Capacity:
    """How many target tokens one rank holds, for data like the set's."""

    rank: int
    tokens: float
    """Target tokens at which the target is met with probability 1/2."""
    low: float
    high: float
    """95% interval of `tokens`."""
    saturates: float | None
    """Target tokens up to which the mean loss falls below ln 2; None if it does at any length."""


@dataclass(frozen=True)
class Split:
    """The set divided equally over several adapters, if a single one cannot hold it."""

    adapters: int
    tokens_each: int
    """Target tokens."""
    rank_each: int


@dataclass(frozen=True)
class PlanLaw:
    """The law behind a plan, and how it differs from what is planned."""

    source: str
    borrowed: bool
    """Fitted to another model or placement."""
    form: Form
    status: str
    axis: Axis
    n: int
    """Cells fitted."""
    r2: float | None
    ranks: tuple[float, float]
    """Lowest and highest rank fitted."""
    lengths: tuple[float, float]
    """Shortest and longest length fitted, target tokens."""
    near: tuple[str, ...] = ()
    """How its model, placement and data differ from those of the plan, one sentence each; empty if they do not."""

    @classmethod
    def from_fit(cls, law: LawFit, near: tuple[str, ...]) -> PlanLaw:
        return cls(
            source=law.source,
            borrowed=bool(law.caveat),
            form=law.form,
            status=law.status,
            axis=law.axis,
            n=law.n,
            r2=law.r2,
            ranks=law.ranks,
            lengths=law.lengths,
            near=near,
        )


@dataclass(frozen=True)
class TrainingWork:
    """The work of training: flops = 6 * parameters * tokens per step * steps, forward and backward together."""

    suffix_parameters: int
    """Parameters of the head and of the layers from the first adapted one up; those below are computed only once."""
    tokens_per_step: int
    """Prompt and target tokens."""
    steps: int
    """Upper limit: training stops earlier once everything is recalled."""
    seconds_per_step: float | None = None
    """Measured on this machine; None if not measured."""

    @property
    def flops(self) -> float:
        return 6.0 * self.suffix_parameters * self.tokens_per_step * self.steps

    @property
    def seconds(self) -> float | None:
        return None if self.seconds_per_step is None else self.seconds_per_step * self.steps


@dataclass(frozen=True)
class Cost:
    """What an adapter of the recommended rank costs."""

    adapter_parameters: int
    adapter_bytes: int
    """Weights in float32."""
    optimizer_bytes: int
    """Gradient, momentum and average over the steps, in float32; AdamW's two moments take as much."""
    steps: int | None
    training_flops: float | None
    seconds: float | None
    """Time of all `steps` on this machine; None if no step was timed."""

    @classmethod
    def from_parameters(cls, parameters: int, work: TrainingWork | None) -> Cost:
        return cls(
            parameters,
            _BYTES * parameters,
            _OPTIMIZER_BYTES * parameters,
            None if work is None else work.steps,
            None if work is None else work.flops,
            None if work is None else work.seconds,
        )


@dataclass(frozen=True)
class Plan:
    """The smallest rank r with L_init - dL(r, l) <= L_needed for l target tokens, with its uncertainty and cost."""

    records: int
    tokens: int
    """Target tokens, all records together."""
    bits: float
    """Bits to store: tokens * L_init' / ln 2."""
    loss_init: float
    """L_init: the base's mean loss on the targets, nats per token."""
    loss_memoryless: float
    """L_init': the loss of the best predictor without memory, nats per token."""
    target: Target
    loss_needed: LossNeeded
    rank: RankRange
    sure: int | None
    """Smallest rank that meets the target with probability 95%; None if no rank here does."""
    probabilities: tuple[RankChance, ...]
    """Probabilities of meeting the target at the ranks of the paper's sweep."""
    saturation: RankRange
    """Smallest rank predicted to bring the mean loss below ln 2. Recall needs more: some tokens lag behind."""
    largest_rank: int
    """Largest rank this placement can use."""
    rule_of_thumb: int
    """Rank with one adapter parameter for each target token: an often quoted rule, for comparison."""
    capacity: Capacity | None
    """Capacity of the requested rank, otherwise of the recommended one."""
    split: Split | None
    """The alternative if no rank here is enough."""
    reason: str | None
    """Why no rank is recommended; None if one is."""
    extrapolates: str | None
    """A sentence if the recommendation lies outside the fitted range; otherwise None."""
    caveats: tuple[str, ...]
    law: PlanLaw
    lora_config: dict[str, Any] | None
    """Keyword arguments of `peft.LoraConfig`; None without a rank, or for the paper's parallel adapter."""
    train: str | None
    """The command that trains the adapter; None without a rank, or if model and data have no name."""
    cost: Cost | None

    def to_dict(self) -> dict[str, Any]:
        """What `memlaw plan --json` prints."""
        return to_dict(self)
