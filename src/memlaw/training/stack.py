"""Train a stack from its first step to its last: which adapters leave and when, and what to do if memory is short."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from torch import Tensor

from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import Execution
from memlaw.core.errors import ConfigError, TrainError
from memlaw.core.facts import EncodedFact
from memlaw.model.base import Base
from memlaw.model.linear import use_onednn
from memlaw.model.memory import out_of_memory
from memlaw.model.parts import decoder_layers, frozen
from memlaw.model.rounding import served_as
from memlaw.training.checkpoint import Checkpoint, Snapshot
from memlaw.training.divergence import is_risen, out_of_patience, risen_in_a_row, why_diverged
from memlaw.training.engine import Engine
from memlaw.training.result import StackProgress, Status, Trained
from memlaw.training.rows import rows_per_step
from memlaw.training.run import Run
from memlaw.training.stalling import Fewest, stalled
from memlaw.training.state import State
from memlaw.training.step import Step
from memlaw.training.step_size import settled

CHECK_EVERY = 10
"""Steps between two evaluations of averaged weights, which no step sees by the way."""

NEAR = 0.25
"""Share of the tokens that the latest weights leave unordered at most when averaged ones are worth an evaluation."""

UNMOVED = (
    "its gradient was zero at every step, so training changed nothing: the modules it adapts do not influence the "
    "loss; adapt other modules or layers"
)


def train_stack(
    base: Base,
    facts: Sequence[EncodedFact],
    runs: Sequence[Run],
    *,
    execution: Execution | None = None,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[StackProgress], None] | None = None,
) -> list[Trained]:
    """Train the adapters of `runs` together on all `facts`; the results come in the order of the runs.

    Up to rounding, each adapter gets what it would get alone. One whose loss stops being finite, or stays clearly above
    where it started (`training.divergence`), leaves the stack as "diverged" and the others continue; a stack that runs
    out of memory continues in smaller parts. If placements differ, every run pays for the layers from the lowest
    adapted one up. The base is restored afterwards.

    With a `checkpoint` the stack is saved there from time to time, and resumes from what is there, to the last bit.
    A fact with floors is not to come back: its tokens are trained until each has reached its floor, and `loss_init`,
    `loss_final` and progress speak of the others. A run with a `start` goes on from that adapter. With `served_as`, the
    facts are trained on the base as it is in each of these precisions, and protected on the first.

    Of `execution`, `compiled` and `prefix_cache` apply here. Raises AdapterError for an impossible rank, ConfigError
    for runs that do not fit together or the checkpoint of another training, TrainError if one row of one adapter does
    not fit in memory.
    """
    for run in runs:
        run.placement.check_rank(run.rank)
        _check_start(run)
    if len({run.config.batch_size for run in runs}) > 1:
        raise ConfigError("Adapters of one stack see the same number of rows in a step: give them one batch_size.")
    if len({run.config.optimizer for run in runs}) > 1:
        raise ConfigError("Adapters of one stack are updated together: give them one optimizer.")
    if len({(run.config.rehearse, run.near_misses) for run in runs}) > 1:
        raise ConfigError("Adapters of one stack rehearse the same: give them one `rehearse` and the same near misses.")
    if len({run.config.served_as for run in runs}) > 1:
        raise ConfigError("Adapters of one stack are trained on the same weights: give them one `served_as`.")
    if len({id(run.neutral) for run in runs if run.config.protect}) > 1:
        raise ConfigError("Adapters of one stack are protected on one text: give them the same neutral text.")
    first = min(run.placement.first_layer for run in runs)
    bases = [served_as(base, precision) for precision in runs[0].config.served_as] or [base]
    with ExitStack() as restored:
        for one in bases:
            restored.enter_context(frozen(one.model))
            restored.enter_context(use_onednn(decoder_layers(one.model)[first:]))
        first_base, *also = bases
        engine = Engine(first_base, facts, settled(first_base, facts, runs, also), execution, also)
        return _Training(engine, checkpoint, on_step).run()


def _check_start(run: Run) -> None:
    """Raise ConfigError for an adapter to go on from that does not fit."""
    start = run.start
    if start is None:
        return
    if len(start) != 1 or start.ranks[0] > run.rank or start.sites != run.placement.sites:
        raise ConfigError(
            f"A run of rank {run.rank} at {run.placement} cannot go on from {len(start)} adapters of rank "
            f"{max(start.ranks)} at {len(start.sites)} modules: give it one adapter of this rank or a smaller one, at "
            "the same modules."
        )


class _Training:
    def __init__(
        self,
        engine: Engine,
        checkpoint: Checkpoint | None,
        on_step: Callable[[StackProgress], None] | None,
    ) -> None:
        self.engine, self.checkpoint, self.on_step = engine, checkpoint, on_step
        self.waiting = [engine.start()]
        """Parts of the stack, the last of them in training; more than one only after memory was short."""
        self.results: dict[int, Trained] = {}
        self.loss_init = [0.0] * len(engine.runs)
        """Of each run, its mean loss before the first step."""
        self.started = time.monotonic()

    def run(self) -> list[Trained]:
        self._look()
        self._resume()
        while self.waiting:
            state = self.waiting.pop()
            try:
                self.waiting += self._after_step(state)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self.waiting += self._smaller(state)
            self._save()
        return [self.results[run] for run in range(len(self.engine.runs))]

    def _look(self) -> None:
        """Evaluate everything before the first step: what an adapter to go on from holds is known then."""
        (state,) = self.waiting
        going_on = [k for k, run in enumerate(self.engine.runs) if run.start is not None]
        if len(going_on) < len(state):  # the others are new, and start as the base itself
            self.loss_init = [float(self.engine.mean(self.engine.evaluate(None)))] * len(state)
        if going_on:
            nll = self._evaluated(state, state.stack, going_on)
            state.latest[going_on] = nll.to(state.latest.dtype)
            for k, mean in zip(going_on, self.engine.mean(nll).tolist(), strict=True):
                self.loss_init[k] = mean
            left = self.engine.left(state.latest, state.settings.limit).tolist()
            state.fewest = tuple(
                Fewest(share, 0, share) if k in going_on else best
                for k, (best, share) in enumerate(zip(state.fewest, left, strict=True))
            )

    def _starts(self, state: State) -> list[float]:
        """The mean losses of the adapters in `state` before the first step."""
        return [self.loss_init[run] for run in state.runs]

    def _after_step(self, state: State) -> list[State]:
        """The state after one more step, without the adapters that have ended; empty if all have.

        What changes before the last operation that can run out of memory may change again, so the step can be repeated.
        """
        out_of_steps = [k for k, config in enumerate(state.configs) if state.step >= config.steps]
        if out_of_steps:
            self._end(state, out_of_steps)
            return _without(state, out_of_steps)
        step = self.engine.step(state)
        state.latest = step.latest
        state.count_forwarded(range(len(state)), step.forwarded.tolist())
        diverged, ended = self._leaving(state, step)
        self._end(state, ended)
        self._end(state, diverged, diverged=True)
        self._report(state, step)
        remaining = _without(state, [*ended, *diverged])
        for rest in remaining:
            if rest is not state:  # some adapters left: drop their part of the step too
                step = step.select([state.runs.index(run) for run in rest.runs], rest.stack.tensors)
            self.engine.advance(rest, step)
        return remaining

    def _leaving(self, state: State, step: Step) -> tuple[list[int], list[int]]:
        """Places of the adapters whose numbers are no longer finite, and of those that end for another reason."""
        diverged = _true_places(~(step.loss.isfinite() & step.norms.isfinite()))
        recalled = self._recalled(state)
        risen_for = risen_in_a_row(state.risen_for, step.loss, self._starts(state))
        risen = self._risen(state, risen_for)
        left = self.engine.left(state.latest, state.settings.limit).tolist()
        state.risen_for = risen_for
        state.fewest = tuple(best.after(now, state.step) for best, now in zip(state.fewest, left, strict=True))
        ended = {*recalled, *risen, *stalled(state.fewest, state.step, state.configs)}
        return diverged, sorted(ended.difference(diverged))

    def _recalled(self, state: State) -> list[int]:
        """Places of the adapters that have every token ordered, by their averaged weights or by their latest.

        `latest`, each token's nll at the last step that saw it, costs nothing to look at; only when it says that all
        tokens are ordered, or for an average that it may soon be so, does an evaluation of all rows confirm it.
        """
        settings = state.settings
        if not settings.until_recalled.any():
            return []
        left = self.engine.left(state.latest, settings.limit).where(settings.until_recalled, 1.0)
        averaged: list[int] = []
        if state.average is not None and state.step % CHECK_EVERY == 0:
            likely = _true_places((left <= NEAR) & (settings.average > 0))
            averaged = self._ordered(likely, state, self._evaluated(state, state.average, likely))
        likely = [k for k in _true_places(left == 0) if k not in averaged]
        if likely:
            state.latest[likely] = self._evaluated(state, state.stack, likely).to(state.latest.dtype)
        latest = self._ordered(likely, state, state.latest[likely])
        state.keep_latest(latest)
        return sorted([*averaged, *latest])

    def _evaluated(self, state: State, stack: AdapterStack, places: Sequence[int]) -> Tensor:
        """nll [places, rows, tokens] of the adapters at `places`, by the weights in `stack`."""
        if not places:
            return stack.scale.new_empty(0)
        state.count_forwarded(places, [self.engine.rows.all_tokens] * len(places))
        return self.engine.evaluate(stack.select(places))

    def _ordered(self, places: Sequence[int], state: State, nll: Tensor) -> list[int]:
        """Those of `places` that have every token ordered according to `nll` [places, rows, tokens]."""
        if not places:
            return []
        ordered = self.engine.all_ordered(nll, state.settings.limit[list(places)])
        return [k for k, all_of_it in zip(places, ordered.tolist(), strict=True) if all_of_it]

    def _risen(self, state: State, risen_for: Sequence[int]) -> list[int]:
        """Places of the adapters that an evaluation of all rows confirms to be clearly above where they started."""
        likely = out_of_patience(risen_for, state.configs)
        if not likely:
            return []
        means = self.engine.mean(self._evaluated(state, state.stack, likely)).tolist()
        starts = self._starts(state)
        return [k for k, mean in zip(likely, means, strict=True) if is_risen(mean, starts[k])]

    def _end(self, state: State, places: Sequence[int], *, diverged: bool = False) -> None:
        """Record the results of the adapters at `places`."""
        if not places:
            return
        leaving = state.lasting.select(places)
        nll = self.engine.evaluate(leaving)
        means, ordered = self.engine.mean(nll), self.engine.all_ordered(nll, state.settings.limit[list(places)])
        for place, k in enumerate(places):
            run, before = self.engine.runs[state.runs[k]], self.loss_init[state.runs[k]]
            alone, recalled = leaving.select([place]).at(run.placement.sites), bool(ordered[place])
            loss = math.nan if diverged else float(means[place])
            status, message = _verdict(alone, recalled, why_diverged((before, loss), state.step, run.config))
            finished = status == "finished"
            self.results[state.runs[k]] = Trained(
                run=run,
                status=status,
                steps=state.step,
                seconds=self._seconds(),
                loss_init=before,
                loss_final=float(means[place]) if finished else None,
                recalled=finished and recalled,
                stack=alone,
                message=message,
                tokens_forwarded=state.forwarded[k],
                protection=run.config.protect * 2.0 ** -state.halvings[k],
            )

    def _smaller(self, state: State) -> list[State]:
        """A state that did not fit in memory as two halves; a single adapter, with half the rows at a time."""
        rows = state.rows_at_once or rows_per_step(len(self.engine.facts), state.configs[0])
        if len(state) > 1:
            middle = (len(state) + 1) // 2
            now, later = state.select(range(middle)), state.select(range(middle, len(state)))
            _warn(f"{len(state)} adapters at once do not fit in memory: continuing with {middle}.")
            return [later, now]
        if rows == 1:
            raise TrainError(
                "One adapter with one row of the facts does not fit in memory. Use shorter texts, a placement in "
                "higher layers, a smaller dtype or a larger machine."
            )
        state.rows_at_once = (rows + 1) // 2
        _warn(f"{rows} rows at once do not fit in memory: continuing with {state.rows_at_once}.")
        return [state]

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _report(self, state: State, step: Step) -> None:
        if self.on_step is None:
            return
        tokens, ordered = float(step.tokens.sum()), float(step.ordered.sum())
        each = max(tokens, 1.0)  # a step may see nothing but what is to be forgotten
        self.on_step(
            StackProgress(
                step=state.step + 1,
                steps=max(config.steps for config in state.configs),
                adapters=len(state),
                loss=float((step.loss * step.tokens).sum()) / each,
                losses=tuple(zip(state.runs, step.loss.tolist(), strict=True)),
                ordered=ordered / each,
                stubborn=round(tokens - ordered),
                seconds=self._seconds(),
            )
        )

    def _resume(self) -> None:
        if self.checkpoint is None:
            return
        snapshot = self.checkpoint.load(self.engine)
        if snapshot is not None:
            self.waiting, self.results = snapshot.states, snapshot.results
            self.started -= snapshot.seconds

    def _save(self) -> None:
        if self.checkpoint is None or not self.checkpoint.due():
            return
        try:
            self.checkpoint.save(self.engine, Snapshot(self.waiting, self.results, self._seconds()))
        except OSError as error:
            reason = error.strerror or error
            _warn(f"{self.checkpoint.path} cannot be written ({reason}): training continues without checkpoints.")
            self.checkpoint = None


def _verdict(adapter: AdapterStack, recalled: bool, diverged: str) -> tuple[Status, str]:
    """How an adapter ended, and why it did not finish; `diverged` says why it diverged, if it did."""
    if diverged:
        return "diverged", diverged
    if not recalled and not any(bool(b.any()) for _, b in adapter.pairs):  # B is still zero, as at the start
        return "failed", UNMOVED
    return "finished", ""


def _without(state: State, left: Sequence[int]) -> list[State]:
    """The state without the adapters at the places `left`: the same object if none left, empty if all did."""
    keep = [k for k in range(len(state)) if k not in left]
    if not left:
        return [state]
    return [state.select(keep)] if keep else []


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


def _true_places(chosen: Tensor) -> list[int]:
    """Where `chosen` [K] is true."""
    places: list[int] = chosen.nonzero()[:, 0].tolist()
    return places
