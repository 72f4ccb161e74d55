"""Train a stack from its first step to its last: who leaves and when, what to do where memory is short."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.errors import ConfigError, TrainError
from memlaw.core.facts import EncodedFact
from memlaw.model.base import Base
from memlaw.model.linear import use_onednn
from memlaw.model.memory import out_of_memory
from memlaw.model.parts import decoder_layers, frozen
from memlaw.model.prefix_cache import PrefixCache
from memlaw.training.checkpoint import Checkpoint, Snapshot
from memlaw.training.engine import Engine, Step
from memlaw.training.optimizer import cut
from memlaw.training.result import StackProgress, Status, Trained
from memlaw.training.rows import rows_per_step
from memlaw.training.state import State

DIVERGED = "the loss was no longer a finite number at step {step}; a lower learning rate may help"

UNMOVED = (
    "its gradient was zero at every step, so it is what it was at the start: nothing that its place computes reaches "
    "the loss; adapt other modules or layers"
)


def train_stack(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement | Sequence[Placement],
    runs: Sequence[tuple[int, TrainConfig]],
    *,
    on_step: Callable[[StackProgress], None] | None = None,
    checkpoint: Checkpoint | None = None,
    compiled: bool = False,
    prefix_cache: str | None = None,
) -> list[Trained]:
    """Train one adapter for each (rank, config) on all `facts`, together, and return them in that order.

    They share a placement, or each has its own: then every one of them pays for the layers from the lowest site on.
    Each result equals, up to rounding, what the run would give alone. A run whose loss stops being a number leaves the
    stack as "diverged" and the others go on; a stack that runs out of memory goes on in smaller parts. The base is
    restored as it was. With a `checkpoint`, the stack is saved there from time to time, and goes on from what it finds
    there, to the same last bit. `compiled` compiles what lies above the last adapted layer (`torch.compile`): for runs
    of thousands of steps. `prefix_cache` is a directory that keeps what the layers below make of the facts. Raises
    AdapterError, ConfigError; TrainError if one row of one adapter exceeds the memory.
    """
    placements = [placement] * len(runs) if isinstance(placement, Placement) else list(placement)
    for where, (rank, _) in zip(placements, runs, strict=True):
        where.check_rank(rank)
    if len({config.batch_size for _, config in runs}) > 1:
        raise ConfigError("Adapters of one stack share the number of rows in a step: give them one batch_size.")
    first = min(where.first_layer for where in placements)
    with frozen(base.model), use_onednn(decoder_layers(base.model)[first:]):
        prefix = None if prefix_cache is None else PrefixCache(prefix_cache)
        engine = Engine(base, facts, placements, runs, compiled=compiled, prefix=prefix)
        return _Run(engine, checkpoint, on_step).to_the_end()


class _Run:
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
        self.started = time.monotonic()

    def to_the_end(self) -> list[Trained]:
        self.loss_init = float(self.engine.mean(self.engine.evaluate(None))[0])
        self._resume()
        while self.waiting:
            state = self.waiting.pop()
            try:
                self.waiting += self._advanced(state)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self.waiting += self._smaller(state)
            self._save()
        return [self.results[run] for run in range(len(self.engine.runs))]

    def _advanced(self, state: State) -> list[State]:
        """The state after one more step, of the adapters that still train: none if all have ended.

        Nothing but `latest` changes before the last thing that can run out of memory is done.
        """
        spent = [k for k, config in enumerate(state.configs) if state.step >= config.steps]
        if spent:
            self._end(state, spent)
            return _without(state, spent)
        step = self.engine.step(state)
        state.latest = step.latest
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in step.gradients]).norm(dim=0)  # [K]
        broken = _places(~(step.loss.isfinite() & norms.isfinite()))
        done = [k for k in self._recalled(state) if k not in broken]
        self._end(state, done)
        self._end(state, broken, diverged=True)
        self._report(state, step)
        gradients = [g * _clipping(state.settings.clip, norms).to(g.dtype) for g in step.gradients]
        for window in step.windows:
            window.commit()
        remaining = _without(state, [*done, *broken])
        for rest in remaining:
            if rest is not state:  # the gradients of those that left go with them
                gradients = cut(gradients, [state.runs.index(run) for run in rest.runs], rest.stack.tensors)
            rest.optimizer.step(rest.stack.tensors, gradients, rest.settings.rates(rest.step), rest.settings.decay)
            rest.step += 1
        return remaining

    # --- who leaves ---

    def _recalled(self, state: State) -> list[int]:
        """Adapters that seem to have every token ordered, confirmed by an evaluation of all rows.

        `latest` holds each token's nll of the last step that saw it: no work until that looks like the end.
        """
        if not any(config.until == "recalled" for config in state.configs):
            return []
        limit = state.settings.limit
        likely = _places(self.engine.all_ordered(state.latest, limit) & state.settings.until_recalled)
        if not likely:
            return []
        state.latest[likely] = self.engine.evaluate(state.stack.select(likely)).to(state.latest.dtype)
        return [k for k in likely if self.engine.all_ordered(state.latest[[k]], limit[[k]])]

    def _end(self, state: State, places: Sequence[int], *, diverged: bool = False) -> None:
        """Record the results of the adapters at `places`."""
        if not places:
            return
        leaving = state.stack.select(places)
        nll = self.engine.evaluate(leaving)
        means, ordered = self.engine.mean(nll), self.engine.all_ordered(nll, state.settings.limit[list(places)])
        for place, k in enumerate(places):
            placement = self.engine.placements[state.runs[k]]
            alone, recalled = leaving.select([place]).at(placement.sites), bool(ordered[place])
            lost = diverged or not means[place].isfinite()
            status, message = _verdict(alone, state.step, diverged=lost, recalled=recalled)
            finished = status == "finished"
            self.results[state.runs[k]] = Trained(
                rank=state.stack.ranks[k],
                config=state.configs[k],
                placement=placement,
                status=status,
                steps=state.step,
                seconds=self._seconds(),
                loss_init=self.loss_init,
                loss_final=float(means[place]) if finished else None,
                recalled=finished and recalled,
                stack=alone,
                message=message,
            )

    def _smaller(self, state: State) -> list[State]:
        """What did not fit, in two halves; once that is one adapter, half of the rows at a time."""
        rows = state.rows_at_once or rows_per_step(len(self.engine.rows), state.configs[0])
        if len(state) > 1:
            middle = (len(state) + 1) // 2
            now, later = state.select(range(middle)), state.select(range(middle, len(state)))
            _warn(f"{len(state)} adapters at once need more memory than there is: going on with {middle}.")
            return [later, now]
        if rows == 1:
            raise TrainError(
                "One adapter with one row of the facts needs more memory than there is. A shorter text, a placement in "
                "higher layers, a smaller dtype or a larger machine would fit."
            )
        state.rows_at_once = (rows + 1) // 2
        _warn(f"{rows} rows at once need more memory than there is: going on with {state.rows_at_once}.")
        return [state]

    # --- told and kept ---

    def _seconds(self) -> float:
        return time.monotonic() - self.started

    def _report(self, state: State, step: Step) -> None:
        if self.on_step is None:
            return
        tokens, ordered = float(step.tokens.sum()), float(step.ordered.sum())
        self.on_step(
            StackProgress(
                step=state.step + 1,
                steps=max(config.steps for config in state.configs),
                adapters=len(state),
                loss=float((step.loss * step.tokens).sum()) / tokens,
                losses=tuple(zip(state.runs, step.loss.tolist(), strict=True)),
                ordered=ordered / tokens,
                stubborn=round(tokens - ordered),
                seconds=self._seconds(),
            )
        )

    def _resume(self) -> None:
        if self.checkpoint is None:
            return
        found = self.checkpoint.load(self.engine)
        if found is not None:
            self.waiting, self.results = found.states, found.results
            self.started -= found.seconds

    def _save(self) -> None:
        if self.checkpoint is None or not self.checkpoint.due():
            return
        try:
            self.checkpoint.save(self.engine, Snapshot(self.waiting, self.results, self._seconds()))
        except OSError as error:
            _warn(f"{self.checkpoint.path} cannot be written ({error.strerror or error}): training goes on without.")
            self.checkpoint = None


def _verdict(adapter: AdapterStack, step: int, *, diverged: bool, recalled: bool) -> tuple[Status, str]:
    """How an adapter ended, and why if it did not finish."""
    if diverged:
        return "diverged", DIVERGED.format(step=step)
    if not recalled and not any(bool(b.any()) for _, b in adapter.pairs):  # B is zero, as it was at the start
        return "failed", UNMOVED
    return "finished", ""


def _without(state: State, left: Sequence[int]) -> list[State]:
    """The state of the others; the same one if nobody left, none if all did."""
    keep = [k for k in range(len(state)) if k not in left]
    if not left:
        return [state]
    return [state.select(keep)] if keep else []


def _clipping(limit: Tensor, norms: Tensor) -> Tensor:
    """Factor [K, 1, 1] that bounds each adapter's gradient norm, as `torch.nn.utils.clip_grad_norm_` does."""
    return (limit / (norms + 1e-6)).clamp(max=1.0).view(-1, 1, 1)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


def _places(chosen: Tensor) -> list[int]:
    """Where `chosen` [K] is true."""
    found: list[int] = chosen.nonzero()[:, 0].tolist()
    return found
