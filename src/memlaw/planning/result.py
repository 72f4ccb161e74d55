"""What a plan says: the rank, how sure that is, what else would do, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memlaw.core.canonical import to_dict
from memlaw.law import Axis, Form, LawFit
from memlaw.planning.target import Target

_BYTES = 4

_OPTIMIZER_BYTES = 12


@dataclass(frozen=True)
class RankRange:
    """A rank and its 95% interval, rounded outward; None is any rank beyond the largest this placement allows."""

    value: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True)
class RankChance:
    """How probable it is that a rank meets the target."""

    rank: int
    probability: float


@dataclass(frozen=True)
class LossNeeded:
    """The mean loss (nats) at which the target is met."""

    nats: float
    why: str


@dataclass(frozen=True)
class Capacity:
    """What one rank holds of this kind of data."""

    rank: int
    tokens: float
    """Target tokens at which it just meets the target, as likely as not."""
    low: float
    high: float
    """95% interval of it."""
    saturates: float | None
    """Target tokens up to which it brings the mean loss under ln 2: from there on it is full; None where it never is.
    """


@dataclass(frozen=True)
class Split:
    """A set that no single adapter here holds, over several."""

    adapters: int
    tokens_each: int
    rank_each: int


@dataclass(frozen=True)
class PlanLaw:
    """Which law a plan rests on, and how near it is to what is planned."""

    source: str
    borrowed: bool
    form: Form
    status: str
    axis: Axis
    n: int
    r2: float | None
    ranks: tuple[float, float]
    lengths: tuple[float, float]
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
    """What training will run through: 6 operations a parameter and token, forward and backward together."""

    suffix_parameters: int
    """Of the layers from the first adapted one up, with the head: those below are computed once."""
    tokens_per_step: int
    """Prompt and target tokens."""
    steps: int
    """At most: a training that stops when all is recalled takes fewer."""
    seconds_per_step: float | None = None
    """Measured on this machine; None where nothing was run."""

    @property
    def flops(self) -> float:
        return 6.0 * self.suffix_parameters * self.tokens_per_step * self.steps

    @property
    def seconds(self) -> float | None:
        return None if self.seconds_per_step is None else self.seconds_per_step * self.steps


@dataclass(frozen=True)
class Cost:
    """Of an adapter of the recommended rank."""

    adapter_parameters: int
    adapter_bytes: int
    """In float32."""
    optimizer_bytes: int
    """Of its gradient and AdamW's two moments, in float32."""
    steps: int | None
    training_flops: float | None
    seconds: float | None
    """All of `steps`, on the machine where a few were timed; None where none were."""

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
    """The smallest rank predicted to hold a memory set, its doubt, its cost, its configuration."""

    records: int
    tokens: int
    """Target tokens, all records together."""
    bits: float
    """To be stored: tokens * L_init' / ln 2."""
    loss_init: float
    loss_memoryless: float
    """L_init' (nats): what remembering nothing but which tokens occur would leave."""
    target: Target
    loss_needed: LossNeeded
    rank: RankRange
    sure: int | None
    """Smallest rank that meets the target with a probability of 95%; None if none here does."""
    probabilities: tuple[RankChance, ...]
    """Of the target being met, at the published ranks."""
    saturation: RankRange
    """From which rank on the mean loss is predicted under ln 2: half-way there, since single tokens lag behind."""
    largest_rank: int
    """The most this placement can use."""
    rule_of_thumb: int
    """The rank with as many adapter parameters as there are target tokens: often quoted, here to compare."""
    capacity: Capacity | None
    """Of the rank asked about, or else of the recommended one."""
    split: Split | None
    """Where no rank here does it: how many adapters would."""
    reason: str | None
    """Why there is no rank to recommend."""
    extrapolates: str | None
    """How far outside the fitted cells the recommendation lies."""
    caveats: tuple[str, ...]
    law: PlanLaw
    lora_config: dict[str, Any] | None
    """Keyword arguments of `peft.LoraConfig`; None without a rank, and for the parallel adapter."""
    train: str | None
    """The command that trains it; None without a rank, or where model and data have no name."""
    cost: Cost | None

    def to_dict(self) -> dict[str, Any]:
        """What `memlaw plan --json` prints."""
        return to_dict(self)
