"""memlaw plan: will it fit? And memlaw laws: the saved laws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memlaw.cli.options import AsJson, Inputs, Laws, Placement
from memlaw.cli.output import (
    RISE,
    aligned_rows,
    counted,
    emit,
    human_bytes,
    note,
    paragraph,
    python_call,
    shell_command,
)

if TYPE_CHECKING:
    from memlaw.planning import Capacity, Cost, Plan, RankChance, RankRange
    from memlaw.planning.library import KnownLaw


def plan(
    *,
    law: Annotated[
        Path | None,
        typer.Option(help="A file of `memlaw fit --save`, or a probe.  [default: the nearest in --laws]"),
    ] = None,
    laws: Laws = None,
    cells: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A probe of a few cells of facts like these, to fit the law to.")
    ] = None,
    target: Annotated[str, typer.Option(help="all, a share such as 0.99 or 99%, or a mean loss: loss=0.1.")] = "all",
    rank: Annotated[int | None, typer.Option(help="Say how much this rank holds.  [default: the planned one]")] = None,
    placement: Placement = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Load the model: measure its loss on the facts, time a few real steps.")
    ] = False,
    inputs: Inputs,
    as_json: AsJson = False,
) -> None:
    """Will it fit? The rank DATA needs, how sure that is, what it costs, and a LoraConfig to paste."""
    from memlaw.planning import PlanRequest, Target
    from memlaw.planning.for_facts import plan_for, plan_from_files
    from memlaw.sweep.laws import law_chooser

    shelf = {} if law is not None else laws_in(laws)
    request = PlanRequest(Target.parse(target), rank, timed=calibrate)
    choose = law_chooser(law, cells, shelf=shelf.values())
    if calibrate or inputs.asks_the_model:
        from memlaw.adapter.on_model import placement_on

        base, memory_set, facts = inputs.load()
        names = inputs.names(memory_set, base.tokenizer)
        where = placement_on(placement, base.model)
        answer = plan_for(base, facts, where, choose, names, request)
    else:
        from memlaw.adapter.placement import resolve

        outline, facts, names = inputs.outlined()
        where = resolve(placement, outline)
        answer = plan_from_files(outline, facts, where, choose, names, request)
    emit(as_json, answer.to_dict(), plan_lines(answer))


def laws(
    *,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where they are kept.  [default: laws]", envvar="MEMLAW_LAWS")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The laws that `memlaw fit --save` kept: of which model, placement and data, how good, how old."""
    from memlaw.planning.library import listing

    rows = listing(laws_in(folder))
    emit(as_json, {"laws": rows}, laws_lines(rows))


def laws_in(folder: Path | None) -> dict[str, KnownLaw]:
    """The laws of a library by name; its damaged files get a warning each."""
    from memlaw.planning.library import FOLDER, library

    found = library(folder or FOLDER)
    for sentence in found.damaged:
        note(f"Warning: {sentence}")
    return found.laws


_ALL_BUT_SURE = 0.99


def plan_lines(plan: Plan) -> Iterator[str]:
    """Will it fit?"""
    yield (
        f"{counted(plan.records, 'record')}, {counted(plan.tokens, 'target token')}: about {plan.bits:,.0f} bits, at "
        f"{plan.loss_memoryless:.2f} nats a token."
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
            f"{counted(plan.split.adapters, 'adapter')} of rank {plan.split.rank_each} would, each for "
            f"{plan.split.tokens_each:,} of the target tokens"
        )
    if chances := _chances(plan):
        rows["chances"] = chances
    if plan.saturation.value is not None:
        rows["half-way"] = f"{plan.saturation.value}{_interval(plan.saturation)} brings the mean loss under ln 2"
    rows["most"] = f"{plan.largest_rank}, the most these modules can use"
    rows["rule of thumb"] = f"{plan.rule_of_thumb}, with as many adapter parameters as target tokens (to compare)"
    if plan.capacity is not None:
        rows[f"rank {plan.capacity.rank}"] = _capacity(plan.capacity)
    rows["loss needed"] = f"{plan.loss_needed.nats:.3g} nats, {plan.loss_needed.why}"
    if plan.cost is not None:
        rows["adapter"] = (
            f"{plan.cost.adapter_parameters:,} parameters, {human_bytes(plan.cost.adapter_bytes)} in float32; "
            f"{human_bytes(plan.cost.optimizer_bytes)} more to train it, for the gradient and AdamW"
        )
        if work := _work(plan.cost):
            rows["training"] = work
    quality = "" if plan.law.r2 is None else f" (R^2 {plan.law.r2:.4f})"
    rows["law"] = f"{plan.law.form} form on {counted(plan.law.n, 'cell')}{quality}: {plan.law.source}"
    if plan.law.near:
        rows["how near"] = " ".join(plan.law.near)
    return rows


def _chances(plan: Plan) -> str:
    """The ranks with which it rises, and the first that is all but sure; the largest where none is any good."""
    shown: list[RankChance] = []
    for chance in plan.probabilities:
        before = shown[-1].probability if shown else 0.0
        if chance.probability - before >= RISE or before < _ALL_BUT_SURE <= chance.probability:
            shown.append(chance)
    return ", ".join(f"{chance.rank}: {chance.probability:.0%}" for chance in shown or plan.probabilities[-1:])


def _capacity(capacity: Capacity) -> str:
    full = "" if capacity.saturates is None else f"; its mean loss stays under ln 2 up to {capacity.saturates:,.0f}"
    return (
        f"holds about {capacity.tokens:,.0f} target tokens of this kind (95%: {capacity.low:,.0f} to "
        f"{capacity.high:,.0f}){full}"
    )


def _work(cost: Cost) -> str:
    """What training takes at most, as far as it is known."""
    known = []
    if cost.steps is not None:
        known.append(counted(cost.steps, "step"))
    if cost.training_flops is not None:
        known.append(f"{cost.training_flops:.1e} FLOP")
    if cost.seconds is not None:
        known.append(f"{cost.seconds:,.0f} s on this machine")
    return f"{', '.join(known)} at most" if known else ""


def laws_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The laws of a library, a paragraph each."""
    for row in rows:
        quality = "" if row["r2"] is None else f", R^2 {row['r2']:.4f}"
        yield f"{row['name']}: {row['form']} form on {counted(row['n'], 'cell')}{quality}"
        of = {key: row[key] for key in ("model", "placement", "data", "method", "date") if row[key] is not None}
        spans = {name: "{:,g} to {:,g}".format(*row[name]) for name in ("ranks", "lengths")}
        yield from aligned_rows({**of, **spans} | ({} if row["status"] == "ok" else {"status": row["status"]}))


def _interval(rank: RankRange) -> str:
    if rank.low is None:
        return ""
    return f" (95%: {rank.low} {'or more' if rank.high is None else f'to {rank.high}'})"
