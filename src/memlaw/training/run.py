"""The one place where weights change: many adapters on the same frozen base and the same facts, trained at once.

The batch of a step is K copies of the rows, one for each adapter of the stack; every adapter has its own method,
learning rate, clipping, schedule, seed and end. Their losses share no weight, so one backward pass of the sum gives
each adapter exactly the gradient it would have alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from memlaw.adapter import AdapterStack, Placement
from memlaw.errors import ConfigError
from memlaw.forward import Forward, split
from memlaw.head import head_pass, token_scores
from memlaw.losses import EPS, pointwise_weights
from memlaw.model import Base, frozen
from memlaw.reach import frozen_head
from memlaw.records import LN2, EncodedFact, TrainConfig
from memlaw.training.optimizer import StackedAdamW, learning_rate
from memlaw.training.rows import Batch, Rows, row_order

EVALUATION_TOKENS = 32768
"""Tokens in one forward of an evaluation: bounds its memory."""

PAPER = TrainConfig(steps=2000, learning_rate=1e-2, scale=1.0, dropout=0.1, init="paper", rule="fallback")
"""The published long-context recipe (arXiv 2605.30260 and the configuration beside it); its placement is `mlp@L`."""

UNTIL_RECALLED = TrainConfig(method="ot", until="recalled", margin=0.1, steps=2000, batch_size=16)
"""How an adapter is trained that is to be used: the steps go to tokens not yet recalled, and it stops when all are.
The step size has to fall for the last tokens to settle, so more steps take longer; docs/log.md has the figures."""

PRESETS = {"default": UNTIL_RECALLED, "paper": PAPER}

DIVERGED = "the loss was no longer a finite number at step {step}; a lower learning rate may help"

_DROPOUT_STREAM = 2_000_003


@dataclass(frozen=True)
class StackProgress:
    """Where a stack stands: enough for a progress bar."""

    step: int
    steps: int
    """Upper limit of steps among the adapters still training."""
    adapters: int
    loss: float
    """Mean training loss over target tokens and adapters, nats."""
    ordered: float
    """Share of the step's target tokens with p > 1/2."""
    stubborn: int
    """Target tokens of the step, over all adapters, with p <= 1/2."""
    seconds: float


@dataclass(frozen=True, eq=False)
class Trained:
    """One adapter at the end of its training."""

    rank: int
    config: TrainConfig
    placement: Placement
    status: Literal["finished", "diverged"]
    steps: int
    """Steps taken, or the step whose loss was no longer a number."""
    seconds: float
    """Wall time of the stack until this adapter left it."""
    loss_init: float
    loss_final: float | None
    """Mean nll over all target tokens, teacher-forced, without dropout."""
    recalled: bool
    """Whether every target token ended with nll < ln 2 - margin."""
    stack: AdapterStack
    """This adapter alone."""
    message: str = ""

    @property
    def parameters(self) -> int:
        """Effective parameters."""
        return self.placement.parameters(self.rank)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """The model with this adapter added."""
        with self.stack.attached(model):
            yield


def train_stack(
    base: Base,
    facts: Sequence[EncodedFact],
    placement: Placement,
    runs: Sequence[tuple[int, TrainConfig]],
    *,
    on_step: Callable[[StackProgress], None] | None = None,
) -> list[Trained]:
    """Train one adapter for each (rank, config) on all `facts`, together, and return them in that order.

    Each result equals, up to rounding, what the run would give alone. A run whose loss stops being a number leaves the
    stack as "diverged" and the others go on. The base is restored as it was. Raises AdapterError, ConfigError.
    """
    for rank, _ in runs:
        placement.check_rank(rank)
    if len({config.batch_size for _, config in runs}) > 1:
        raise ConfigError("Adapters of one stack share the number of rows in a step: give them one batch_size.")
    with frozen(base.model):
        return _Stack(base, facts, placement, runs).run(on_step)


class _Stack:
    """State of one stack in training. Axes: K adapters, b rows of a step, t target tokens of a row."""

    def __init__(
        self, base: Base, facts: Sequence[EncodedFact], placement: Placement, runs: Sequence[tuple[int, TrainConfig]]
    ) -> None:
        self.model, self.placement, self.runs = base.model, placement, list(runs)
        self.rows = Rows.of(facts, base.device)
        self.head = frozen_head(base.model)
        self.forward: Forward = split(base.model, placement.first_layer, placement.first_sites, self.rows.ids)
        self.cached = self.forward.cache(self.rows.ids)
        dtype = "float64" if base.dtype == "float64" else "float32"
        self.stack = AdapterStack.start(placement.sites, self.runs, device=base.device, dtype=dtype)
        self.optimizer = StackedAdamW(self.stack.tensors)
        self.orders = [row_order(len(facts), config) for _, config in self.runs]
        self.drops = [
            torch.Generator(base.device).manual_seed(config.seed + _DROPOUT_STREAM) for _, config in self.runs
        ]
        self.latest = torch.full((len(self.runs), *self.rows.mask.shape), torch.inf, device=base.device)
        self.alive = list(range(len(self.runs)))  # position in the stack -> index of the run
        self.results: dict[int, Trained] = {}
        self.batch: Batch | None = None

    @property
    def configs(self) -> list[TrainConfig]:
        return [self.runs[index][1] for index in self.alive]

    def run(self, on_step: Callable[[StackProgress], None] | None) -> list[Trained]:
        self.started = time.monotonic()
        self.loss_init = float(self._mean(self._evaluate(None))[0])
        step = 0
        while self.alive:
            self._retire_exhausted(step)
            if not self.alive:
                break
            self._step(step, self._batch(), on_step)
            step += 1
        return [self.results[index] for index in range(len(self.runs))]

    def _batch(self) -> Batch:
        """What every adapter sees in the next step; the same one again where it is all the rows of the same stack."""
        rows = torch.stack([next(self.orders[index]) for index in self.alive]).to(self.rows.ids.device)
        if self.batch is None or not torch.equal(self.batch.rows, rows):
            self.batch = Batch.of(rows, self.rows)
            self.inputs = self.cached[self.batch.each]
        return self.batch

    def _step(self, step: int, batch: Batch, on_step: Callable[[StackProgress], None] | None) -> None:
        """One optimizer step of every adapter."""
        tensors = [tensor.requires_grad_(True) for tensor in self.stack.tensors]
        with self.stack.attached(self.model, drop=self._drop()):
            hidden = self.forward(self.inputs).flatten(0, 1)[batch.predictors]
        nll, pull = self._scored(hidden, batch)
        gradients = torch.autograd.grad(hidden, tensors, pull)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # [K]
        self._report(step, nll, on_step)
        done = self._recalled_now(batch, nll)
        finite = (batch.summed(nll).isfinite() & norms.isfinite()).tolist()
        broken = {k for k, number in enumerate(finite) if not number}
        keep = [k for k in range(len(self.alive)) if k not in done and k not in broken]
        if keep:
            self._update(step, [g * self._clip(norms) for g in gradients], keep)
        self._leave(step, done - broken, broken, keep)

    def _scored(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """nll [n] of the target tokens, and the gradient [n, d] of the sum of all adapters' losses in `hidden`.

        Each loss is the mean over its own weighted tokens of the whole step (`losses.weighted_mean`).
        """
        every = self._each([config.method == "sft" for config in self.configs])
        critical = self._each([LN2 - config.margin for config in self.configs])

        def weigh(nll: Tensor, _hit: Tensor, part: slice) -> Tensor:
            owners = batch.owners[part]
            return pointwise_weights(nll, every=every[owners], critical=critical[owners])

        found = head_pass(self.head, hidden, batch.targets, weigh)
        gradient, total = found.gradient, batch.summed(found.weights)
        back = self._each([config.rule == "fallback" for config in self.configs]) & (total == 0)
        if back.any():  # nothing left under the threshold: these adapters train on all their tokens after all
            again = back[batch.owners]
            gradient[again] = head_pass(self.head, hidden[again], batch.targets[again], _all_of_them).gradient
            total = torch.where(back, batch.summed(torch.ones_like(found.nll)), total)
        return found.nll, gradient / (total + EPS)[batch.owners, None]

    def _each(self, values: Sequence[float | bool]) -> Tensor:
        """One value for each adapter of the stack: [K]."""
        return torch.tensor(values, device=self.rows.ids.device)

    def _clip(self, norms: Tensor) -> Tensor:
        """Factor [K, 1, 1] that bounds each adapter's gradient norm, as `torch.nn.utils.clip_grad_norm_` does."""
        limit = torch.tensor([config.clip or torch.inf for config in self.configs], device=norms.device)
        return (limit / (norms + 1e-6)).clamp(max=1.0).to(norms.dtype).view(-1, 1, 1)

    def _update(self, step: int, gradients: list[Tensor], keep: list[int]) -> None:
        rates = torch.zeros(len(self.alive), device=self.rows.ids.device)
        decays = torch.zeros_like(rates)
        for k in keep:
            rates[k] = learning_rate(self.configs[k], step)
            decays[k] = self.configs[k].weight_decay
        self.optimizer.step(self.stack.tensors, gradients, rates, decays)

    # --- who leaves, and how ---

    def _retire_exhausted(self, step: int) -> None:
        spent = {k for k, config in enumerate(self.configs) if step >= config.steps}
        self._leave(step, spent, set(), [k for k in range(len(self.alive)) if k not in spent])

    def _recalled_now(self, batch: Batch, nll: Tensor) -> set[int]:
        """Adapters that seem to have every token ordered, confirmed by an evaluation of all rows.

        `latest` holds each token's nll of the last step that saw it: no work until that looks like the end.
        """
        waiting = [k for k, config in enumerate(self.configs) if config.until == "recalled"]
        if not waiting:
            return set()
        seen = batch.padded(nll).to(self.latest.dtype)
        done = set()
        for k in waiting:
            index, config = self.alive[k], self.configs[k]
            self.latest[index, batch.rows[k]] = seen[k]
            if self._all_ordered(self.latest[index], config):
                self.latest[index] = self._evaluate(self.stack.select([k]))[0]
                if self._all_ordered(self.latest[index], config):
                    done.add(k)
        return done

    def _all_ordered(self, nll: Tensor, config: TrainConfig) -> bool:
        return bool((nll[self.rows.mask] < LN2 - config.margin).all())

    def _leave(self, step: int, done: set[int], broken: set[int], keep: list[int]) -> None:
        """Record the results of those that end at `step`, and compact the stack to the others."""
        if not done and not broken:
            return
        seconds = time.monotonic() - self.started
        for k in sorted(done | broken):
            index = self.alive[k]
            rank, config = self.runs[index]
            alone = self.stack.select([k])
            final = None if k in broken else self._evaluate(alone)
            finite = final is not None and bool(final.isfinite().all())
            self.results[index] = Trained(
                rank=rank,
                config=config,
                placement=self.placement,
                status="finished" if finite else "diverged",
                steps=step,
                seconds=seconds,
                loss_init=self.loss_init,
                loss_final=float(self._mean(final)[0]) if final is not None and finite else None,
                recalled=final is not None and finite and self._all_ordered(final[0], config),
                stack=alone,
                message="" if finite else DIVERGED.format(step=step),
            )
        if keep:
            self.stack = self.stack.select(keep)
            self.optimizer = self.optimizer.select(keep, self.stack.tensors)
        self.alive = [self.alive[k] for k in keep]

    # --- forward passes ---

    @torch.no_grad()
    def _evaluate(self, stack: AdapterStack | None) -> Tensor:
        """nll [K, rows, tokens] of all rows, without dropout; of the base alone where `stack` is None (K = 1)."""
        copies = 1 if stack is None else len(stack)
        chunk = max(1, EVALUATION_TOKENS // (copies * self.rows.ids.shape[1]))
        everything = torch.arange(len(self.rows), device=self.rows.ids.device)
        return torch.cat([self._nll(stack, part.expand(copies, -1)) for part in torch.split(everything, chunk)], dim=1)

    def _nll(self, stack: AdapterStack | None, rows: Tensor) -> Tensor:
        """nll [K, b, tokens] of the target tokens of `rows` [K, b], zero where a row has no such token."""
        batch = Batch.of(rows, self.rows)
        with nullcontext() if stack is None else stack.attached(self.model):
            hidden = self.forward(self.cached[batch.each]).flatten(0, 1)[batch.predictors]
        return batch.padded(token_scores(self.head, hidden, batch.targets)[0])

    def _mean(self, nll: Tensor) -> Tensor:
        """Mean over target tokens: [K, rows, t] -> [K], summed in float64."""
        return nll[:, self.rows.mask].double().mean(dim=1)

    def _drop(self) -> Callable[[Tensor], Tensor] | None:
        return self._dropout if any(config.dropout for config in self.configs) else None

    def _dropout(self, x: Tensor) -> Tensor:
        """Dropout on [K, tokens, d] with one random stream an adapter, so that stacking changes no mask."""
        kept = []
        for k, (index, config) in enumerate(zip(self.alive, self.configs, strict=True)):
            draw = torch.rand(x.shape[1:], generator=self.drops[index], device=x.device)
            kept.append(x[k] * (draw >= config.dropout) / (1 - config.dropout))
        return torch.stack(kept)

    def _report(self, step: int, nll: Tensor, on_step: Callable[[StackProgress], None] | None) -> None:
        if on_step is None:
            return
        stubborn = int((nll >= LN2).sum())
        on_step(
            StackProgress(
                step=step + 1,
                steps=max(config.steps for config in self.configs),
                adapters=len(self.alive),
                loss=float(nll.mean()),
                ordered=1 - stubborn / len(nll),
                stubborn=stubborn,
                seconds=time.monotonic() - self.started,
            )
        )


def _all_of_them(nll: Tensor, _hit: Tensor, _part: slice) -> Tensor:
    return torch.ones_like(nll)
