"""memlaw plan: predict the rank that a set of facts needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memlaw.cli.laws import laws_in
from memlaw.cli.options import AsJson, Inputs, Laws, Placement
from memlaw.cli.output import (
    aligned_rows,
    counted,
    emit,
    human_bytes,
    paragraph,
    python_call,
    shell_command,
)

if TYPE_CHECKING:
    from memlaw.model.base import Base
    from memlaw.model.outline import Outline
    from memlaw.planning import Capacity, Cost, Plan, RankChance, RankRange


@dataclass(frozen=True, kw_only=True)
class LawOptions:
    """The law to plan with."""

    law: Annotated[
        Path | None,
        typer.Option(help="File of `memlaw fit --save`, or a probe.  [default: the nearest law in --laws]"),
    ] = None
    laws: Laws = None
    cells: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Small probe of facts like these, to calibrate the law with."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the plan answers."""

    target: Annotated[
        str, typer.Option(help="What to achieve: all, a share of the facts (0.99 or 99%), or a mean loss (loss=0.1).")
    ] = "all"
    rank: Annotated[
        int | None, typer.Option(help="Report the capacity of this rank.  [default: the predicted rank]")
    ] = None
    placement: Placement = None
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the model to measure its loss on the facts and time a few steps.")
    ] = False


def plan(*, source: LawOptions, question: Question, inputs: Inputs, as_json: AsJson = False) -> None:
    """Will it fit? Predict the rank that DATA needs, with its uncertainty and cost, and a LoraConfig to paste."""
    from memlaw.api import PlanSettings, plan_on
    from memlaw.planning import Target
    from memlaw.sweep.laws import law_chooser

    target = Target.parse(question.target)
    library = {} if source.law is not None else laws_in(source.laws)
    choose = law_chooser(source.law, source.cells, shelf=library.values())
    model: Base | Outline
    if question.calibrate or inputs.needs_model:
        base, memory_set, facts = inputs.load()
        model, names = base, inputs.names(memory_set, base.tokenizer)
    else:
        model, facts, names = inputs.read_outline()
    settings = PlanSettings(
        target=target,
        rank=question.rank,
        placement=question.placement,
        calibrate=question.calibrate,
    )
    answer = plan_on(model, facts, names, choose, **settings)
    emit(as_json, answer.to_dict(), plan_lines(answer))


_NOTABLE_RISE = 0.08
"""Rise in probability that makes a rank worth listing."""

_ALMOST_SURE = 0.99


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan as printed: a table, notes, a LoraConfig and a command to paste."""
    yield (
        f"{counted(plan.records, 'record')}, {counted(plan.tokens, 'target token')}: about {plan.bits:,.0f} bits, at "
        f"{plan.loss_memoryless:.2f} nats per token."
    )
    yield ""
    yield from aligned_rows(_plan_rows(plan))
    for caveat in (*plan.caveats, plan.extrapolates):
        if caveat:
            yield ""
            yield from paragraph(f"Note: {caveat}")
    if plan.lora_config is not None:
        yield ""
        yield from python_call("LoraConfig", plan.lora_config)
    if plan.train is not None:
        yield ""
        yield from shell_command(plan.train)


def _plan_rows(plan: Plan) -> dict[str, str]:
    rows = {"rank": plan.reason or "no rank"}
    if plan.rank.value is not None:
        sure = "" if plan.sure is None else f"; 95% sure at {plan.sure}"
        rows["rank"] = f"{plan.rank.value}{_interval(plan.rank)} is predicted to meet the target, {plan.target}{sure}"
    if plan.split is not None:
        rows["several"] = (
            f"{counted(plan.split.adapters, 'adapter')} of rank {plan.split.rank_each} would do, each storing "
            f"{counted(plan.split.tokens_each, 'target token')}"
        )
    if chances := _chances(plan):
        rows["chances"] = chances
    if plan.saturation.value is not None:
        rows["halfway"] = f"{plan.saturation.value}{_interval(plan.saturation)} brings the mean loss below ln 2"
    rows["largest rank"] = f"{plan.largest_rank}, the most these modules can use"
    rows["rule of thumb"] = f"{plan.rule_of_thumb}, one adapter parameter per target token (for comparison)"
    if plan.capacity is not None:
        rows[f"rank {plan.capacity.rank}"] = _capacity(plan.capacity)
    rows["loss needed"] = f"{plan.loss_needed.nats:.3g} nats, {plan.loss_needed.why}"
    if plan.cost is not None:
        rows["adapter"] = (
            f"{plan.cost.adapter_parameters:,} parameters, {human_bytes(plan.cost.adapter_bytes)} in float32; "
            f"{human_bytes(plan.cost.optimizer_bytes)} more in training, for gradients and averages"
        )
        if work := _work(plan.cost):
            rows["training"] = work
    quality = "" if plan.law.r2 is None else f" (R^2 {plan.law.r2:.4f})"
    rows["law"] = f"{plan.law.form} form on {counted(plan.law.n, 'cell')}{quality}: {plan.law.source}"
    if plan.law.near:
        rows["differences"] = " ".join(plan.law.near)
    return rows


def _chances(plan: Plan) -> str:
    """The ranks at which the probability of success rises, up to the first that is almost sure; else the largest."""
    listed: list[RankChance] = []
    for chance in plan.probabilities:
        before = listed[-1].probability if listed else 0.0
        if chance.probability - before >= _NOTABLE_RISE or before < _ALMOST_SURE <= chance.probability:
            listed.append(chance)
    return ", ".join(f"{chance.rank}: {chance.probability:.0%}" for chance in listed or plan.probabilities[-1:])


def _capacity(capacity: Capacity) -> str:
    below = "" if capacity.saturates is None else f"; its mean loss stays below ln 2 up to {capacity.saturates:,.0f}"
    return (
        f"holds about {capacity.tokens:,.0f} target tokens of this kind (95%: {capacity.low:,.0f} to "
        f"{capacity.high:,.0f}){below}"
    )


def _work(cost: Cost) -> str:
    """The most that training can take, as far as it is known."""
    known = []
    if cost.steps is not None:
        known.append(counted(cost.steps, "step"))
    if cost.training_flops is not None:
        known.append(f"{cost.training_flops:.1e} FLOP")
    if cost.seconds is not None:
        known.append(f"{cost.seconds:,.0f} s on this machine")
    return f"at most {', '.join(known)}" if known else ""


def _interval(rank: RankRange) -> str:
    if rank.low is None:
        return ""
    return f" (95%: {rank.low} {'or more' if rank.high is None else f'to {rank.high}'})"
