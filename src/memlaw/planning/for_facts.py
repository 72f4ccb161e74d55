"""A plan for facts on a model: by the model's files alone, without torch, or by the model itself, which knows more."""

from __future__ import annotations

import math
import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from memlaw.adapter.placement import Placement
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.facts import EncodedFact
from memlaw.data import target_tokens
from memlaw.law.bits import memoryless_loss
from memlaw.model.outline import Outline
from memlaw.planning.library import KnownLaw, LawChooser, PlanContext
from memlaw.planning.planner import plan
from memlaw.planning.result import Plan, TrainingWork
from memlaw.planning.target import Target

if TYPE_CHECKING:
    from memlaw.model.base import Base

_TIMED_STEPS = 5

_UNMEASURED = (
    "The base's own loss on these targets was not measured: {loss:.2f} nats a token is {source}. --calibrate loads the "
    "model and measures it."
)


@dataclass(frozen=True)
class Names:
    """What the commands call the model and the facts, and what tells them apart; None where that is not known."""

    model: str
    data: str | None = None
    reading: tuple[str, ...] = ()
    """Options of the commands that say how the facts are read."""
    tokenizer_fingerprint: str | None = None
    data_fingerprint: str | None = None


def plan_from_files(
    outline: Outline,
    facts: Sequence[EncodedFact],
    placement: Placement,
    choose: LawChooser,
    *,
    names: Names,
    target: Target | None = None,
    rank: int | None = None,
) -> Plan:
    """The rank these facts need at this placement, by what the model's files tell; its loss on them is the law's.

    Raises ConfigError, FitError.
    """
    use = _use(outline, facts, placement, names)
    known = choose(use)
    loss_init, unmeasured = _guessed_loss(known, use.tokens, outline.vocabulary)
    answer = _plan(outline, facts, placement, known, use, loss_init, names, target, rank, seconds=None)
    return replace(answer, caveats=(*answer.caveats, unmeasured))


def plan_for(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement,
    choose: LawChooser,
    *,
    names: Names | None = None,
    target: Target | None = None,
    rank: int | None = None,
    timed: bool = False,
) -> Plan:
    """The rank these facts need at this placement; the base's loss on them is measured, and if `timed` a few steps of
    training are taken to say how long it will take. Raises ConfigError, FitError."""
    from memlaw.diagnosis.measure import measure
    from memlaw.model.outline_from_module import outline_of_model

    names = names or Names(base.name)
    outline = outline_of_model(base.model)
    loss_init = measure(base, facts, decode=False).mean_loss
    use = replace(
        _use(outline, facts, placement, names),
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        model_fingerprint=base.fingerprint,
        loss_init=loss_init,
    )
    use = replace(use, loss_memoryless=min(use.loss_memoryless or loss_init, loss_init))
    known = choose(use)
    answer = _plan(outline, facts, placement, known, use, loss_init, names, target, rank, seconds=None)
    if not timed or answer.rank.value is None:
        return answer
    seconds = seconds_per_step(base, facts, placement, answer.rank.value)
    return _plan(outline, facts, placement, known, use, loss_init, names, target, rank, seconds=seconds)


def seconds_per_step(base: Base, facts: Sequence[EncodedFact], placement: Placement, rank: int) -> float:
    """The median of a few real steps of `memlaw train`'s own settings, after one that is not counted."""
    from memlaw.training.result import StackProgress
    from memlaw.training.run import Run
    from memlaw.training.stack import train_stack

    ticks: list[float] = []

    def tick(_: StackProgress) -> None:
        ticks.append(time.perf_counter())

    few = replace(UNTIL_RECALLED, until="budget", steps=_TIMED_STEPS + 2)
    train_stack(base, facts, [Run(rank, placement, few)], on_step=tick)
    return statistics.median(later - earlier for earlier, later in pairwise(ticks[1:]))


def _use(outline: Outline, facts: Sequence[EncodedFact], placement: Placement, names: Names) -> PlanContext:
    return PlanContext(
        model=names.model,
        outline=outline.digest,
        placement=str(placement),
        tokens=target_tokens(facts),
        tokenizer_fingerprint=names.tokenizer_fingerprint,
        data_fingerprint=names.data_fingerprint,
        loss_memoryless=memoryless_loss((fact.target for fact in facts), math.inf, outline.vocabulary),
    )


def _plan(
    outline: Outline,
    facts: Sequence[EncodedFact],
    placement: Placement,
    known: KnownLaw,
    use: PlanContext,
    loss_init: float,
    names: Names,
    target: Target | None,
    rank: int | None,
    *,
    seconds: float | None,
) -> Plan:
    if rank is not None:
        placement.check_rank(rank)
    answer = plan(
        known.law,
        records=len(facts),
        tokens=use.tokens,
        loss_init=loss_init,
        loss_memoryless=use.loss_memoryless,
        placement=placement,
        target=target,
        cells=known.cells,
        rank=rank,
        scale=UNTIL_RECALLED.scale,
        work=_work(outline, facts, placement, seconds),
        near=known.near,
    )
    return replace(answer, train=_train_line(answer, names, placement))


def _work(outline: Outline, facts: Sequence[EncodedFact], placement: Placement, seconds: float | None) -> TrainingWork:
    """The most that `memlaw train` would do with its own settings; it stops earlier once everything is recalled."""
    rows = min(UNTIL_RECALLED.batch_size, len(facts))
    tokens = sum(len(fact.ids) for fact in facts) * rows // len(facts)
    return TrainingWork(outline.weights_from(placement.first_layer), tokens, UNTIL_RECALLED.steps, seconds)


def _guessed_loss(known: KnownLaw, tokens: int, vocabulary: int) -> tuple[float, str]:
    """L_init where the model was not run, and the sentence that says so."""
    if known.law.loss_init:
        loss, source = float(known.law.loss_init_at(tokens)), "that of the law's cells"
    else:
        loss, source = math.log(vocabulary), "ln of the vocabulary, as if the base knew nothing"
    return loss, _UNMEASURED.format(loss=loss, source=source)


def _train_line(answer: Plan, names: Names, placement: Placement) -> str | None:
    """The command that trains what was planned, ready to paste."""
    if answer.rank.value is None or names.data is None:
        return None
    facts = [names.data, "--model", names.model, *names.reading]
    settings = ["--rank", str(answer.rank.value), "--placement", str(placement), "--out", "adapter"]
    return shlex.join(["memlaw", "train", *facts, *settings])
