"""The law turned round: from a memory set, known in a few numbers, to a rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from memlaw.core.errors import ConfigError
from memlaw.core.recall import LN2
from memlaw.law import LawFit, Origin, borrow, fit_law, published
from memlaw.planning.recall_loss import CellRecall, RecallCurve, recall_curve
from memlaw.planning.result import Capacity, Cost, LossNeeded, Plan, PlanLaw, RankChance, RankRange, Split, TrainingWork
from memlaw.planning.sizes import TAILS, Sizes
from memlaw.planning.target import Target

BORROWED_FACTOR = 4.0
"""How far a borrowed law's rank may be off, either way. Measured once: Qwen3-8B's law, asked for the parameters that a
2-million-parameter model of width 128 needed to come under ln 2, named 1.2 to 1.9 times as many."""

BORROWED = (
    "Borrowed: this law was fitted to {model}, not to this model. Adapters are compared by their number of "
    "parameters, and the rank is only taken to be right within a factor of 4. For a law of this model run "
    "`memlaw probe DATA --budget 10m --out probe`, then plan with `--law probe`."
)

SURE = 0.95

OTHER_KIND_FACTOR = 4.0
"""How far the rank may be off, either way, where a law's cells stored another kind of data. Measured on the bundled
base: the laws of random tokens, a phone book and hexadecimal keys named 0.4 to 1.4 times the ranks that sets of the
other two kinds needed."""

_OTHER_KIND = 0.2
"""Share by which L_init or L_init' may differ from the law's cells before the data count as another kind."""

_LENGTHS = np.geomspace(1 / 64, 64, 97)
"""Multiples of the set's own length among which the length that a rank holds is looked for."""

_MOST_ADAPTERS = 1024


class AdapterPlacement(Protocol):
    """Where the adapter would sit; `memlaw.adapter.placement` finds it in a model."""

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


def default_law() -> LawFit:
    """The law for a model that has none: the bounded form on the published Qwen3-8B cells, over adapter parameters."""
    law = fit_law(
        published.points(), "bounded", axis="parameters", source=published.SOURCE, origin=Origin(**published.ORIGIN)
    )
    return borrow(law, factor=BORROWED_FACTOR, caveat=BORROWED.format(model=published.ORIGIN["model"]))


def plan(
    law: LawFit,
    *,
    records: int,
    tokens: int,
    loss_init: float,
    placement: AdapterPlacement,
    loss_memoryless: float | None = None,
    target: Target | None = None,
    cells: Sequence[CellRecall] = (),
    rank: int | None = None,
    scale: float = 1.0,
    work: TrainingWork | None = None,
    near: Sequence[str] = (),
) -> Plan:
    """The smallest rank at which `law` predicts `tokens` target tokens, starting at `loss_init` nats, to be recalled.

    `loss_memoryless`: L_init', by default no less than L_init; `cells`: what finished cells say of the loss that
    recall needs; `rank`: one to state the capacity of; `scale`: lora_alpha / rank, as the law's cells were trained;
    `near`: in what the law's cells differ from this set. Value and interval of the rank come from `Sizes`: the law's
    own answer, and the quantiles of what it might be. Raises ConfigError for numbers out of range, FitError for a law
    without parameters.
    """
    _check(records, tokens, loss_init)
    target = target or Target()
    memoryless = loss_init if loss_memoryless is None else min(loss_memoryless, loss_init)
    curve, other_kind = recall_curve(cells), _other_kind(law, tokens, loss_init, memoryless)
    sizes = Sizes(
        law, curve, target, records, tokens, loss_init,
        factor=OTHER_KIND_FACTOR if other_kind and not law.caveat else 1.0,
    )  # fmt: skip
    unit = 1 if law.axis == "rank" else placement.parameters(1)
    largest = placement.max_rank
    needed, drawn = sizes.point(tokens) / unit, _drawn(sizes, tokens, unit)
    found = _range(needed, drawn, largest)
    shown = rank or found.value
    return Plan(
        records=records,
        tokens=tokens,
        bits=tokens * memoryless / LN2,
        loss_init=loss_init,
        loss_memoryless=memoryless,
        target=target,
        loss_needed=LossNeeded(sizes.loss(tokens), _why(curve, target)),
        rank=found,
        sure=_sure(drawn, largest),
        probabilities=_probabilities(drawn, largest),
        saturation=_range(sizes.point(tokens, LN2) / unit, _drawn(sizes, tokens, unit, LN2), largest),
        largest_rank=largest,
        rule_of_thumb=math.ceil(tokens / placement.parameters(1)),
        capacity=None if shown is None else _capacity(sizes, shown, unit),
        split=_split(sizes, unit, largest) if found.value is None else None,
        reason=None if found.value is not None else _no_rank(needed, tokens, sizes.loss(tokens), largest),
        extrapolates=law.extrapolation(needed * unit, tokens) if math.isfinite(needed) else None,
        caveats=tuple(_caveats(law, sizes, other_kind, parallel=placement.parallel)),
        law=PlanLaw(
            law.source, bool(law.caveat), law.form, law.status, law.axis, law.n, law.r2, law.ranks, law.lengths,
            tuple(near),
        ),
        lora_config=(
            None if found.value is None or placement.parallel else placement.lora_config(found.value, scale=scale)
        ),
        train=None,
        cost=None if found.value is None else Cost.of(placement.parameters(found.value), work),
    )  # fmt: skip


def _check(records: int, tokens: int, loss_init: float) -> None:
    if records < 1 or tokens < records:
        raise ConfigError(
            f"A plan was asked for {records} records with {tokens} target tokens. At least one record is needed, and "
            "each has at least one target token."
        )
    if not (math.isfinite(loss_init) and loss_init > 0):
        raise ConfigError(
            f"loss_init is {loss_init}: the base's mean loss on the targets before training, in nats, is above 0."
        )


def _drawn(sizes: Sizes, tokens: float, unit: float, loss: float | None = None) -> np.ndarray[Any, Any] | None:
    """Ranks, not rounded, that may be needed, rising; None where the law has no error bars."""
    if sizes.law.covariance is None or sizes.law.sigma is None:
        return None
    return np.sort(sizes.draws(tokens, loss) / unit)


def _whole(rank: float) -> float:
    """The next whole rank; a hair under it is a rounding error, not a need."""
    return max(1, math.ceil(rank - 1e-9)) if math.isfinite(rank) else math.inf


def _range(point: float, drawn: np.ndarray[Any, Any] | None, largest: int) -> RankRange:
    value = _whole(point)
    low, high = (1.0, math.inf) if drawn is None else np.quantile(drawn, TAILS, method="inverted_cdf")
    lowest = min(max(1, math.floor(low)) if math.isfinite(low) else math.inf, value)
    highest = max(_whole(high), value)
    return RankRange(*(int(at) if at <= largest else None for at in (value, lowest, highest)))


def _sure(drawn: np.ndarray[Any, Any] | None, largest: int) -> int | None:
    if drawn is None:
        return None
    rank = _whole(float(np.quantile(drawn, SURE, method="inverted_cdf")))
    return int(rank) if rank <= largest else None


def _probabilities(drawn: np.ndarray[Any, Any] | None, largest: int) -> tuple[RankChance, ...]:
    if drawn is None:
        return ()
    ranks = [rank for rank in published.RANKS if rank <= largest]
    return tuple(
        RankChance(rank, float(np.searchsorted(drawn, rank + 1e-9, side="right") / len(drawn))) for rank in ranks
    )


def _no_rank(point: float, tokens: int, nats: float, largest: int) -> str:
    asks = f"it asks for about {point:,.0f}" if math.isfinite(point) else "by this law none would"
    return (
        f"No rank up to {largest:,}, the most these modules can use, is predicted to bring {tokens:,} target tokens to "
        f"a mean loss of {nats:.3g} nats: {asks}. Adapt more modules or layers, or split the set over several adapters."
    )


def _capacity(sizes: Sizes, rank: int, unit: float) -> Capacity:
    """The lengths at which the size needed passes this rank: the law's own, and the 95% interval of the draws."""
    lengths = sizes.tokens * _LENGTHS
    points = np.array([sizes.point(length) for length in lengths]) / unit
    low, high = lengths[0], lengths[-1]
    if sizes.law.covariance is not None and sizes.law.sigma is not None:
        drawn = np.stack([sizes.draws(length) for length in lengths]) / unit
        high, low = (
            _crossing(lengths, np.quantile(drawn, tail, axis=1, method="inverted_cdf"), rank) for tail in TAILS
        )
    saturates = sizes.law.length_for(rank * unit, loss_init=sizes.loss_init)
    full = saturates if math.isfinite(saturates) else None
    return Capacity(rank, _crossing(lengths, points, rank), float(low), float(high), full)


def _crossing(lengths: np.ndarray[Any, Any], needed: np.ndarray[Any, Any], rank: float) -> float:
    """Where the size needed passes `rank`, between two of `lengths`; their first or last where it does not."""
    beyond = needed > rank
    if not beyond.any():
        return float(lengths[-1])
    first = int(beyond.argmax())
    if first == 0:
        return float(lengths[0])
    if not math.isfinite(needed[first]) or needed[first - 1] <= 0:
        return float(lengths[first - 1])
    ends = np.log(needed[first - 1 : first + 1])
    return float(np.exp(np.interp(math.log(rank), ends, np.log(lengths[first - 1 : first + 1]))))


def _split(sizes: Sizes, unit: float, largest: int) -> Split | None:
    """The fewest adapters that hold the set in equal parts; None where even single records are too much."""
    for adapters in range(2, min(_MOST_ADAPTERS, sizes.tokens) + 1):
        each = math.ceil(sizes.tokens / adapters)
        rank = _whole(sizes.point(each) / unit)
        if rank <= largest:
            return Split(adapters, each, int(rank))
    return None


def _why(curve: RecallCurve, target: Target) -> str:
    if target.share is None:
        return "as asked for."
    learned = (
        f"learned from {curve.cells:,} cells"
        if curve.cells
        else "memlaw's own experience with small models, since no cell was given"
    )
    return f"where {target} should come back verbatim: {learned}."


def _other_kind(law: LawFit, tokens: int, loss_init: float, memoryless: float) -> str:
    """By what these targets are seen to be of another kind than the law's cells; empty where they are not."""
    for began, nats, table, at in (
        ("start at", loss_init, law.loss_init, law.loss_init_at),
        (
            "would cost, with nothing remembered but which tokens occur,",
            memoryless,
            law.loss_memoryless,
            law.loss_memoryless_at,
        ),
    ):
        if not table:
            continue
        usual = float(at(tokens))
        if abs(usual - nats) > _OTHER_KIND * usual:
            return f"These targets {began} {nats:.2f} nats a token, the law's cells {usual:.2f}"
    return ""


def _caveats(law: LawFit, sizes: Sizes, other_kind: str, *, parallel: bool) -> Iterator[str]:
    if law.caveat:
        yield law.caveat
    if law.status != "ok":
        yield f"The law this rests on is doubtful. {law.status}"
    if other_kind:
        yield (
            f"{other_kind}: another kind of data, or lengths that were not counted in target tokens. The rank is only "
            f"taken to be right within a factor of {OTHER_KIND_FACTOR:g}; a few cells of this kind (--cells) would "
            "calibrate the law."
        )
    if sizes.loss_init <= sizes.loss(sizes.tokens):
        yield "The base already gives these targets the loss that is needed: check whether it recalls them."
    if parallel:
        yield (
            "An adapter beside a whole MLP (mlp@LAYER) is the paper's, not one PEFT can build: train it with "
            "`memlaw train`, or plan for a placement such as down_proj."
        )
