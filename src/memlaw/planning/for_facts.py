"""A plan for facts on a model: from the model's files alone, without torch, or from the loaded model.

The files give the shape of the model. The loaded model also gives its loss on the facts and the time of a step.
"""

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
from memlaw.law.growth import Array
from memlaw.model.outline import Outline
from memlaw.planning.capacity import LENGTHS, Capacities
from memlaw.planning.library import KnownLaw, LawChooser, PlanContext
from memlaw.planning.planner import plan, sizes_for, unit_of
from memlaw.planning.request import MeasuredSet, PlanRequest
from memlaw.planning.result import Plan, TrainingWork
from memlaw.planning.target import Target

if TYPE_CHECKING:
    from memlaw.model.base import Base

_TIMED_STEPS = 5

_UNMEASURED = (
    "The base's own loss on these targets was not measured; {loss:.2f} nats per token is {source}. Add --calibrate to "
    "load the model and measure it."
)


@dataclass(frozen=True)
class Names:
    """What the commands call the model and the facts, and their fingerprints; None if not known."""

    model: str
    data: str | None = None
    reading: tuple[str, ...] = ()
    """Command-line options that say how the facts are read."""
    tokenizer_fingerprint: str | None = None
    data_fingerprint: str | None = None


def plan_from_files(
    outline: Outline,
    facts: Sequence[EncodedFact],
    placement: Placement,
    choose: LawChooser,
    names: Names,
    request: PlanRequest | None = None,
) -> Plan:
    """The rank these facts need at this placement, from the model's files alone.

    Nothing is run, so the base's loss on the facts is taken from the law and the plan says so; `request.timed` has no
    effect. Raises ConfigError, FitError.
    """
    case = _Case(outline, facts, placement, names, request or PlanRequest())
    context = case.context()
    known = choose(context)
    loss_init, caveat = _assumed_loss(known, context.tokens, outline.vocabulary)
    answer = case.plan(known, loss_init, context.loss_memoryless)
    return replace(answer, caveats=(*answer.caveats, caveat))


def plan_for(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement,
    choose: LawChooser,
    names: Names | None = None,
    request: PlanRequest | None = None,
) -> Plan:
    """The rank these facts need at this placement, with the base's loss on them measured.

    With `request.timed`, a few training steps are run to estimate the training time; the model is left as it was.
    Raises ConfigError, FitError.
    """
    case, context, loss_init = _measured(base, facts, placement, names, request)
    known = choose(context)
    answer = case.plan(known, loss_init, context.loss_memoryless)
    if not case.request.timed or answer.rank.value is None:
        return answer
    seconds = seconds_per_step(base, facts, placement, answer.rank.value)
    return case.plan(known, loss_init, context.loss_memoryless, seconds)


def capacities_for(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement,
    choose: LawChooser,
    multiples: Array = LENGTHS,
) -> Capacities:
    """How many target tokens like those of these facts each rank holds; runs the base once, on the facts.

    Capacities are searched between the first and the last of `multiples` of the facts' own tokens. Raises FitError.
    """
    case, context, loss_init = _measured(base, facts, placement)
    known = choose(context)
    sizes = sizes_for(known, case.measured(loss_init, context.loss_memoryless), Target())
    return Capacities(sizes, unit_of(known.law, placement), multiples)


def _measured(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement,
    names: Names | None = None,
    request: PlanRequest | None = None,
) -> tuple[_Case, PlanContext, float]:
    """The case of these facts on a loaded model, what is known for the choice of a law, and L_init."""
    from memlaw.diagnosis.measure import measure
    from memlaw.model.outline_from_module import outline_of_model

    case = _Case(outline_of_model(base.model), facts, placement, names or Names(base.name), request or PlanRequest())
    loss_init = measure(base, facts, decode=False).mean_loss
    context = case.context()
    context = replace(
        context,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        model_fingerprint=base.fingerprint,
        loss_init=loss_init,
        loss_memoryless=min(context.loss_memoryless or loss_init, loss_init),
    )
    return case, context, loss_init


def seconds_per_step(base: Base, facts: Sequence[EncodedFact], placement: Placement, rank: int) -> float:
    """The median of a few real steps with `memlaw train`'s own settings, after one that warms up."""
    from memlaw.training.result import StackProgress
    from memlaw.training.run import Run
    from memlaw.training.stack import train_stack

    ticks: list[float] = []

    def tick(_: StackProgress) -> None:
        ticks.append(time.perf_counter())

    # What is prepared once, before the first step, is not timed; it would only take time here.
    few = replace(UNTIL_RECALLED, until="budget", steps=_TIMED_STEPS + 2, learning_rate=1e-3, protect=0.0)
    train_stack(base, facts, [Run(rank, placement, few)], on_step=tick)
    return statistics.median(later - earlier for earlier, later in pairwise(ticks[1:]))


@dataclass(frozen=True)
class _Case:
    """One set of facts at one placement of one model, and what is asked about them."""

    outline: Outline
    facts: Sequence[EncodedFact]
    placement: Placement
    names: Names
    request: PlanRequest

    def context(self) -> PlanContext:
        """What the files tell about the use of a law."""
        return PlanContext(
            model=self.names.model,
            outline=self.outline.digest,
            placement=str(self.placement),
            tokens=target_tokens(self.facts),
            optimizer=UNTIL_RECALLED.optimizer,
            tokenizer_fingerprint=self.names.tokenizer_fingerprint,
            data_fingerprint=self.names.data_fingerprint,
            loss_memoryless=memoryless_loss((fact.target for fact in self.facts), math.inf, self.outline.vocabulary),
        )

    def plan(
        self, known: KnownLaw, loss_init: float, loss_memoryless: float | None, seconds: float | None = None
    ) -> Plan:
        """The plan by this law; `seconds` is the measured time of a step."""
        if self.request.rank is not None:
            self.placement.check_rank(self.request.rank)
        measured = self.measured(loss_init, loss_memoryless)
        work = self._work(seconds)
        answer = plan(known, measured, self.placement, self.request, scale=UNTIL_RECALLED.scale, work=work)
        return replace(answer, train=self._train_command(answer.rank.value))

    def measured(self, loss_init: float, loss_memoryless: float | None) -> MeasuredSet:
        """The facts in numbers."""
        return MeasuredSet(
            records=len(self.facts),
            tokens=target_tokens(self.facts),
            loss_init=loss_init,
            loss_memoryless=loss_memoryless,
        )

    def _work(self, seconds: float | None) -> TrainingWork:
        """The most that `memlaw train` would process with its own settings; it stops once everything is recalled."""
        rows = min(UNTIL_RECALLED.batch_size, len(self.facts))
        tokens = sum(len(fact.ids) for fact in self.facts) * rows // len(self.facts)
        weights = self.outline.weights_from(self.placement.first_layer)
        return TrainingWork(weights, tokens, UNTIL_RECALLED.steps, seconds)

    def _train_command(self, rank: int | None) -> str | None:
        """The command that trains the planned adapter, ready to paste."""
        if rank is None or self.names.data is None:
            return None
        facts = [self.names.data, "--model", self.names.model, *self.names.reading]
        settings = ["--rank", str(rank), "--placement", str(self.placement), "--out", "adapter"]
        return shlex.join(["memlaw", "train", *facts, *settings])


def _assumed_loss(known: KnownLaw, tokens: int, vocabulary: int) -> tuple[float, str]:
    """L_init (nats per token) if the model was not run, and the caveat that says so."""
    if known.law.loss_init:
        loss, source = float(known.law.loss_init_at(tokens)), "the loss of the law's cells"
    else:
        loss, source = math.log(vocabulary), "ln of the vocabulary size, as if the base knew nothing"
    return loss, _UNMEASURED.format(loss=loss, source=source)
