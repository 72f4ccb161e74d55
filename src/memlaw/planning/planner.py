"""Invert the law: from a memory set, in a few measured numbers, to the rank it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from memlaw.core.recall import LN2
from memlaw.law import LawFit, published
from memlaw.law.growth import Array
from memlaw.planning.capacity import Capacities
from memlaw.planning.library import KnownLaw
from memlaw.planning.recall_loss import RecallCurve, recall_curve
from memlaw.planning.request import MeasuredSet, PlanRequest
from memlaw.planning.result import Cost, LossNeeded, Plan, PlanLaw, RankChance, RankRange, Split, TrainingWork
from memlaw.planning.sizes import TAILS, Sizes
from memlaw.planning.target import Target

SURE = 0.95
"""Probability of meeting the target at the rank called sure."""

OTHER_KIND_FACTOR = 4.0
"""How far off the rank may be, either way, if the law's cells stored another kind of data. Measured on the bundled
base: the laws of random tokens, a phone book and hexadecimal keys predicted 0.4 to 1.4 times the ranks that sets of the
other two kinds needed."""

_OTHER_KIND = 0.2
"""L_init or L_init' may differ from the law's cells by this share before the data count as another kind."""

_MOST_ADAPTERS = 1024


class AdapterPlacement(Protocol):
    """Where the adapter would sit. `memlaw.adapter.placement` resolves one from a model's outline."""

    @property
    def parallel(self) -> bool:
        """Whether this is the paper's adapter beside a whole MLP, which PEFT cannot express."""
        ...

    @property
    def max_rank(self) -> int: ...

    def parameters(self, rank: int, /) -> int:
        """Effective parameters of an adapter of this rank."""
        ...

    def lora_config(self, rank: int, /, *, scale: float) -> dict[str, Any]:
        """Keyword arguments of `peft.LoraConfig`."""
        ...


def plan(
    known: KnownLaw,
    facts: MeasuredSet,
    placement: AdapterPlacement,
    request: PlanRequest | None = None,
    *,
    scale: float = 1.0,
    work: TrainingWork | None = None,
) -> Plan:
    """The smallest rank r with L_init - dL(r, l) <= L_needed, for a set of l target tokens.

    dL is the law's prediction and L_needed the mean loss (nats per token) at which the target is met. `Sizes` gives the
    interval: the quantiles of the sizes that might be needed, given everything that is uncertain.

    Args:
        known: the law to plan with, and what its cells say about recall.
        facts: the set, in a few measured numbers.
        placement: where the adapter would sit.
        request: the target, and a rank to state the capacity of; by default, all facts and the recommended rank.
        scale: lora_alpha / rank, as in the training of the law's cells.
        work: what training would process, for the cost.

    Raises FitError for a law without parameters.
    """
    request = request or PlanRequest()
    law, tokens, sizes = known.law, facts.tokens, sizes_for(known, facts, request.target)
    unit, mismatch = unit_of(law, placement), _data_mismatch(law, facts)
    largest = placement.max_rank
    needed, drawn = sizes.point(tokens) / unit, _drawn_ranks(sizes, unit)
    rank = _range(needed, drawn, largest)
    shown = request.rank or rank.value
    return Plan(
        records=facts.records,
        tokens=tokens,
        bits=tokens * facts.loss_to_store / LN2,
        loss_init=facts.loss_init,
        loss_memoryless=facts.loss_to_store,
        target=request.target,
        loss_needed=LossNeeded(sizes.loss(tokens), _why(sizes.recall, request.target)),
        rank=rank,
        sure=_sure(drawn, largest),
        probabilities=_probabilities(drawn, largest),
        saturation=_range(sizes.point(tokens, LN2) / unit, _drawn_ranks(sizes, unit, LN2), largest),
        largest_rank=largest,
        rule_of_thumb=math.ceil(tokens / placement.parameters(1)),
        capacity=None if shown is None else Capacities(sizes, unit).at(shown),
        split=_split(sizes, unit, largest) if rank.value is None else None,
        reason=None if rank.value is not None else _no_rank(needed, sizes, largest),
        extrapolates=law.extrapolation(needed * unit, tokens) if math.isfinite(needed) else None,
        caveats=tuple(_caveats(law, sizes, mismatch, parallel=placement.parallel)),
        law=PlanLaw.from_fit(law, known.near),
        lora_config=(
            None if rank.value is None or placement.parallel else placement.lora_config(rank.value, scale=scale)
        ),
        train=None,
        cost=None if rank.value is None else Cost.from_parameters(placement.parameters(rank.value), work),
    )


def sizes_for(known: KnownLaw, facts: MeasuredSet, target: Target) -> Sizes:
    """The sizes that such facts may need; with a wider interval if they are of another kind than the law's cells."""
    factor = OTHER_KIND_FACTOR if _data_mismatch(known.law, facts) and not known.law.caveat else 1.0
    recall = recall_curve(known.cells)
    return Sizes(known.law, recall, target, facts.records, facts.tokens, facts.loss_init, factor=factor)


def unit_of(law: LawFit, placement: AdapterPlacement) -> int:
    """The size of rank 1 on the law's axis: 1, or the adapter parameters of a rank."""
    return 1 if law.axis == "rank" else placement.parameters(1)


def _drawn_ranks(sizes: Sizes, unit: float, loss: float | None = None) -> Array | None:
    """Ranks (not rounded) that may be needed, in rising order; None if the law has no error bars."""
    if sizes.law.covariance is None or sizes.law.sigma is None:
        return None
    return np.sort(sizes.draws(sizes.tokens, loss) / unit)


def _round_up(rank: float) -> float:
    """The next whole rank. Subtracting 1e-9 keeps a rounding error from costing a whole rank."""
    return max(1, math.ceil(rank - 1e-9)) if math.isfinite(rank) else math.inf


def _range(needed: float, drawn: Array | None, largest: int) -> RankRange:
    """The rank and its 95% interval, rounded outward. Without draws every rank is possible."""
    value = _round_up(needed)
    low, high = (1.0, math.inf) if drawn is None else np.quantile(drawn, TAILS, method="inverted_cdf")
    lowest = min(max(1, math.floor(low)) if math.isfinite(low) else math.inf, value)
    highest = max(_round_up(high), value)
    return RankRange(*(int(at) if at <= largest else None for at in (value, lowest, highest)))


def _sure(drawn: Array | None, largest: int) -> int | None:
    if drawn is None:
        return None
    rank = _round_up(float(np.quantile(drawn, SURE, method="inverted_cdf")))
    return int(rank) if rank <= largest else None


def _probabilities(drawn: Array | None, largest: int) -> tuple[RankChance, ...]:
    if drawn is None:
        return ()
    ranks = [rank for rank in published.RANKS if rank <= largest]
    return tuple(
        RankChance(rank, float(np.searchsorted(drawn, rank + 1e-9, side="right") / len(drawn))) for rank in ranks
    )


def _no_rank(needed: float, sizes: Sizes, largest: int) -> str:
    estimate = (
        f"the law predicts that about {needed:,.0f} is needed"
        if math.isfinite(needed)
        else "by this law no rank is enough"
    )
    return (
        f"No rank up to {largest:,}, the most these modules can use, is predicted to bring {sizes.tokens:,} target "
        f"tokens to a mean loss of {sizes.loss(sizes.tokens):.3g} nats: {estimate}. Adapt more modules or layers, or "
        "split the set over several adapters."
    )


def _split(sizes: Sizes, unit: float, largest: int) -> Split | None:
    """The fewest adapters that hold the set in equal parts; None if even the smallest parts do not fit."""
    for adapters in range(2, min(_MOST_ADAPTERS, sizes.tokens) + 1):
        each = math.ceil(sizes.tokens / adapters)
        rank = _round_up(sizes.point(each) / unit)
        if rank <= largest:
            return Split(adapters, each, int(rank))
    return None


def _why(recall: RecallCurve, target: Target) -> str:
    if target.share is None:
        return "as requested."
    basis = (
        f"learned from {recall.cells:,} cells"
        if recall.cells
        else "from memlaw's experiments with small models, because no cells were given"
    )
    return f"to recall {target} verbatim: {basis}."


def _data_mismatch(law: LawFit, facts: MeasuredSet) -> str:
    """How the losses of these targets show another kind of data than the law's cells; empty if they do not."""
    comparisons = (
        ("The base starts at", facts.loss_init, law.loss_init, law.loss_init_at),
        (
            "The best predictor without memory needs",
            facts.loss_to_store,
            law.loss_memoryless,
            law.loss_memoryless_at,
        ),
    )
    for subject, nats, table, loss_at in comparisons:
        if not table:
            continue
        usual = float(loss_at(facts.tokens))
        if abs(usual - nats) > _OTHER_KIND * usual:
            return f"{subject} {nats:.2f} nats per token on these targets, but {usual:.2f} on the law's cells"
    return ""


def _caveats(law: LawFit, sizes: Sizes, mismatch: str, *, parallel: bool) -> Iterator[str]:
    if law.caveat:
        yield law.caveat
    if law.status != "ok":
        yield f"The law behind this plan is doubtful. {law.status}"
    if mismatch:
        yield (
            f"{mismatch}: this is another kind of data, or the lengths were not counted in target tokens. Expect the "
            f"rank to be right only within a factor of {OTHER_KIND_FACTOR:g}; to calibrate the law, probe a few cells "
            "of this kind and pass them with --cells."
        )
    if sizes.loss_init <= sizes.loss(sizes.tokens):
        yield "The base already reaches the loss that is needed on these targets: check whether it recalls them."
    if parallel:
        yield (
            "PEFT cannot build the paper's adapter beside a whole MLP (mlp@LAYER). Train it with `memlaw train`, or "
            "plan for another placement, such as down_proj."
        )
