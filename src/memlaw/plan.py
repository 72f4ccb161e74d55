"""Will it fit? The law turned round: which rank a memory set needs, how sure that is, and what it costs. No torch.

A plan is mathematics on numbers the caller measured without training: how many records and target tokens, the base's
own loss on them, and where the adapter would sit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from memlaw import published
from memlaw.errors import ConfigError
from memlaw.law import Axis, Form, LawFit, borrow, fit_law
from memlaw.law.curve import Array, size_for
from memlaw.records import LN2, to_dict

DEFAULT_LOSS = 0.05
"""Mean loss (nats) that is taken to mean recalled where no cell says better: were token losses spread exponentially,
as a mean of 0.05 nats allows, one token in 2^(1/0.05) = a million would be above ln 2."""

BORROWED_FACTOR = 4.0
"""How far a borrowed law's rank may be off, either way. Measured once: Qwen3-8B's law, asked for the parameters that a
2-million-parameter model of width 128 needed to come under ln 2, named 1.2 to 1.9 times as many."""

BORROWED = (
    "Borrowed: this law was fitted to Qwen3-8B, not to this model. Adapters are compared by their number of "
    "parameters, and the rank is only taken to be right within a factor of 4. Run `memlaw probe` on this model for its "
    "own law."
)

_BYTES = 4
_DRAWS = 4000
_TAILS = (0.025, 0.975)
_OTHER_KIND = 0.2
"""Share by which L_init may differ from the law's cells before the data count as another kind."""


class AdapterPlacement(Protocol):
    """Where the adapter would sit; `memlaw.adapter.parse_placement` finds it in a model."""

    @property
    def parallel(self) -> bool:
        """Whether it is the paper's adapter beside a whole MLP, which PEFT cannot express."""
        ...

    @property
    def max_rank(self) -> int: ...

    def parameters(self, rank: int, /) -> int:
        """Effective parameters of an adapter of this rank."""
        ...

    def lora_config(self, rank: int, /, *, scale: float) -> dict[str, Any]:
        """Keyword arguments of `peft.LoraConfig`."""
        ...


@dataclass(frozen=True)
class TrainingWork:
    """What training will run through: 6 operations a parameter and token, forward and backward together."""

    suffix_parameters: int
    """Of the layers from the first adapted one up, with the head: those below are computed once."""
    tokens_per_step: int
    """Prompt and target tokens."""
    steps: int

    @property
    def flops(self) -> float:
        return 6.0 * self.suffix_parameters * self.tokens_per_step * self.steps


@dataclass(frozen=True)
class RankRange:
    """A rank and its 95% interval, rounded outward; None is any rank beyond the largest this placement allows."""

    value: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True)
class LossNeeded:
    """The mean loss (nats) at which the wanted share is recalled."""

    nats: float
    """What the plan aims at."""
    most: float
    """Up to where it might still do: the smallest loss at which an observed cell failed, or the same as `nats`."""
    why: str


@dataclass(frozen=True)
class PlanLaw:
    """Which law a plan rests on."""

    source: str
    borrowed: bool
    form: Form
    status: str
    axis: Axis
    n: int
    r2: float | None
    ranks: tuple[float, float]
    lengths: tuple[float, float]


@dataclass(frozen=True)
class Cost:
    """Of an adapter of the recommended rank."""

    adapter_parameters: int
    adapter_bytes: int
    """In float32."""
    training_flops: float | None


@dataclass(frozen=True)
class Plan:
    """The answer: the smallest rank predicted to hold a memory set, its doubt, its cost, its configuration."""

    records: int
    tokens: int
    """Target tokens, all records together."""
    bits: float
    """To be stored; unless the caller knows better, what the base itself needs: tokens * loss_init / ln 2."""
    loss_init: float
    target: float
    """Share to be recalled."""
    loss_needed: LossNeeded
    rank: RankRange
    saturation: RankRange
    """From which rank on the mean loss is predicted under ln 2: half-way there, since single tokens lag behind."""
    largest_rank: int
    """The most this placement can use."""
    reason: str | None
    """Why there is no rank to recommend."""
    extrapolates: str | None
    """How far outside the fitted cells the recommendation lies."""
    caveats: tuple[str, ...]
    law: PlanLaw
    lora_config: dict[str, Any] | None
    """Keyword arguments of `peft.LoraConfig`; None without a rank, and for the parallel adapter."""
    cost: Cost | None

    def to_dict(self) -> dict[str, Any]:
        """What `memlaw plan --json` prints."""
        return to_dict(self)


def default_law() -> LawFit:
    """The law for a model that has none: the bounded form on the published Qwen3-8B cells, over adapter parameters."""
    law = fit_law(published.points(), "bounded", axis="parameters", source=published.SOURCE)
    return borrow(law, factor=BORROWED_FACTOR, caveat=BORROWED)


def loss_needed(target: float, observed: Sequence[tuple[float, float]] = ()) -> LossNeeded:
    """The largest mean loss at which `target` of the set (a share) is recalled, learned from (loss_final, share) cells.

    The share is taken to fall as the loss rises (isotonic regression). The default of 0.05 nats holds unless a cell
    missed the target at less, or reached it at more.
    """
    from scipy.optimize import isotonic_regression

    if not observed:
        return LossNeeded(DEFAULT_LOSS, DEFAULT_LOSS, f"{DEFAULT_LOSS} nats, memlaw's default: no cell to learn from.")
    losses, shares = np.array(sorted(observed), dtype=float).T
    reached = isotonic_regression(shares, increasing=False).x >= target - 1e-9
    held = float(losses[reached].max(initial=0.0))
    failed = float(losses[~reached].min(initial=math.inf))
    if not reached.any():
        nats = min(DEFAULT_LOSS, failed)
        why = f"{nats:.3g} nats, a guess: no cell recalled {target:.0%}, not even the one that ended at {failed:.3g}."
        return LossNeeded(nats, nats, why)
    nats = max(held, DEFAULT_LOSS) if failed > DEFAULT_LOSS else held
    most = failed if math.isfinite(failed) else nats
    beyond = f"; at {failed:.3g} they no longer did" if math.isfinite(failed) else ""
    return LossNeeded(nats, most, f"{nats:.3g} nats: cells that ended at {held:.3g} recalled {target:.0%}{beyond}.")


def plan(
    law: LawFit,
    *,
    records: int,
    tokens: int,
    loss_init: float,
    placement: AdapterPlacement,
    bits: float | None = None,
    target: float = 1.0,
    observed: Sequence[tuple[float, float]] = (),
    scale: float = 1.0,
    work: TrainingWork | None = None,
) -> Plan:
    """The smallest rank at which `law` predicts `tokens` target tokens, starting at `loss_init` nats, to be recalled.

    `target`: share of records (or tokens) to recall; `observed`: (loss_final, share) of finished cells, from which the
    mean loss that needs is learned; `scale`: lora_alpha / rank, as the law's cells were trained. The interval is a
    parametric bootstrap: laws drawn from the fit's covariance, each cell scattering around its law as the fitted ones
    did, the needed loss drawn between what sufficed and what failed. Raises ConfigError for numbers out of range,
    FitError for a law without parameters.
    """
    _check(records, tokens, loss_init, target)
    largest = placement.max_rank
    unit = 1 if law.axis == "rank" else placement.parameters(1)
    needed = loss_needed(target, observed)
    point = law.rank_for(tokens, loss_final=needed.nats, loss_init=loss_init) / unit
    rank = _rank_range(law, tokens, loss_init, needed, unit, largest)
    return Plan(
        records=records,
        tokens=tokens,
        bits=tokens * loss_init / LN2 if bits is None else bits,
        loss_init=loss_init,
        target=target,
        loss_needed=needed,
        rank=rank,
        saturation=_rank_range(law, tokens, loss_init, LossNeeded(LN2, LN2, ""), unit, largest),
        largest_rank=largest,
        reason=None if rank.value is not None else _no_rank(point, tokens, needed.nats, largest),
        extrapolates=_extrapolation(law, point * unit, tokens),
        caveats=_caveats(law, tokens, loss_init, needed, parallel=placement.parallel),
        law=PlanLaw(
            law.source, bool(law.caveat), law.form, law.status, law.axis, law.n, law.r2, law.ranks, law.lengths
        ),
        lora_config=(
            None if rank.value is None or placement.parallel else placement.lora_config(rank.value, scale=scale)
        ),
        cost=None if rank.value is None else _cost(placement.parameters(rank.value), work),
    )


def _check(records: int, tokens: int, loss_init: float, target: float) -> None:
    if records < 1 or tokens < records:
        raise ConfigError(
            f"A plan was asked for {records} records with {tokens} target tokens. At least one record is needed, and "
            "each has at least one target token."
        )
    if not (math.isfinite(loss_init) and loss_init > 0):
        raise ConfigError(
            f"loss_init is {loss_init}: the base's mean loss on the targets before training, in nats, is above 0."
        )
    if not 0 < target <= 1:
        raise ConfigError(f"target is {target}: it is the share to be recalled, above 0 and at most 1 (all).")


def _rank_range(law: LawFit, tokens: int, loss_init: float, needed: LossNeeded, unit: float, largest: int) -> RankRange:
    """Ranks at which `tokens` end at the needed loss: the law's own, and the 95% interval over laws it might be."""
    point = law.rank_for(tokens, loss_final=needed.nats, loss_init=loss_init) / unit
    # A hair under the next whole number is a rounding error, not a need.
    value = max(1, math.ceil(point - 1e-9)) if point <= largest else None
    if law.covariance is None or law.sigma is None:
        return RankRange(value, 1, None)
    random = np.random.default_rng(0)
    # Student's t, not normal: sigma itself is only known from the cells that were left over.
    spread = np.sqrt(law.freedom / random.chisquare(law.freedom, _DRAWS))
    drawn = random.standard_normal((_DRAWS, len(law.theta))) @ _root(np.array(law.covariance)).T
    laws = law.theta + spread[:, None] * drawn
    losses = np.exp(random.uniform(math.log(needed.nats), math.log(needed.most), _DRAWS))
    # A cell that does better than its law by e nats is there e nats before the law is. One that does worse may never
    # be, if the ceiling is near: what it lacks is put on u, where the law goes on.
    scatter = law.sigma * spread * random.standard_normal(_DRAWS)
    better, worse = np.maximum(scatter, 0), np.maximum(-scatter, 0)
    ceiling = None if law.form == "paper" else loss_init
    sizes = size_for(laws, tokens, loss_init - losses - better, ceiling, worse)
    low, high = np.quantile(sizes / unit, _TAILS, method="inverted_cdf")
    lowest = min(max(1, math.floor(low)) if low <= largest else largest + 1, value or largest + 1)
    highest = max(math.ceil(high) if high <= largest else largest + 1, value or largest + 1)
    return RankRange(value, *(at if at <= largest else None for at in (lowest, highest)))


def _root(covariance: Array) -> Array:
    """A matrix R with R R' = covariance, which may be singular up to rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _no_rank(point: float, tokens: int, nats: float, largest: int) -> str:
    asks = f"it asks for about {point:,.0f}" if math.isfinite(point) else "by this law none would"
    return (
        f"No rank up to {largest:,}, the most these modules can use, is predicted to bring {tokens:,} target tokens to "
        f"a mean loss of {nats:.3g} nats: {asks}. Adapt more modules or layers, or split the set over several adapters."
    )


def _extrapolation(law: LawFit, size: float, tokens: int) -> str | None:
    named = f"rank {size:,.4g}" if law.axis == "rank" else f"{size:,.0f} adapter parameters"
    outside = [
        f"{name} (fitted: {low:,.0f} to {high:,.0f})"
        for value, name, (low, high) in ((tokens, f"{tokens:,} target tokens", law.lengths), (size, named, law.sizes))
        if not low <= value <= high
    ]
    if not outside:
        return None
    return f"Outside what was measured: {'; '.join(outside)}. The interval assumes that the law goes on unchanged."


def _caveats(law: LawFit, tokens: int, loss_init: float, needed: LossNeeded, *, parallel: bool) -> tuple[str, ...]:
    found = [law.caveat] if law.caveat else []
    if law.status != "ok":
        found.append(f"The law this rests on is doubtful. {law.status}")
    if law.loss_init and abs((usual := float(law.loss_init_at(tokens))) - loss_init) > _OTHER_KIND * usual:
        found.append(
            f"These targets start at {loss_init:.2f} nats a token, the law's cells at {usual:.2f}: another kind of "
            "data. A few cells of this kind would calibrate the law."
        )
    if loss_init <= needed.nats:
        found.append("The base already gives these targets the loss that is needed: check whether it recalls them.")
    if parallel:
        found.append(
            "An adapter beside a whole MLP (mlp@LAYER) is the paper's, not one PEFT can build: train it with "
            "`memlaw train`, or plan for a placement such as down_proj."
        )
    return tuple(found)


def _cost(parameters: int, work: TrainingWork | None) -> Cost:
    return Cost(parameters, _BYTES * parameters, None if work is None else work.flops)
