"""The one place where weights change: many adapters on the same frozen base and the same facts, trained at once.

The batch of a step is K copies of the rows, one for each adapter of the stack; every adapter has its own method,
learning rate, clipping, schedule, seed and end. Their losses share no weight, so one backward pass of the sum gives
each adapter exactly the gradient it would have alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from memlaw.adapter import AdapterStack, Placement
from memlaw.errors import ConfigError
from memlaw.forward import Forward, split
from memlaw.head import token_scores
from memlaw.losses import token_weights, weighted_mean
from memlaw.model import Base, frozen
from memlaw.reach import frozen_head
from memlaw.records import LN2, EncodedFact, TrainConfig

EVALUATION_TOKENS = 32768
"""Tokens in one forward of an evaluation: bounds its memory."""

PAPER = TrainConfig(steps=2000, learning_rate=1e-2, scale=1.0, dropout=0.1, init="paper", rule="fallback")
"""The published long-context recipe (arXiv 2605.30260 and the configuration beside it); its placement is `mlp@L`."""

UNTIL_RECALLED = TrainConfig(method="ot", until="recalled", margin=0.1, steps=2000, batch_size=16)
"""How an adapter is trained that is to be used: the steps go to tokens not yet recalled, and it stops when all are.
The step size has to fall for the last tokens to settle, so more steps take longer; docs/log.md has the figures."""

PRESETS = {"default": UNTIL_RECALLED, "paper": PAPER}

_ORDER_STREAM = 1_000_003
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


@dataclass(frozen=True)
class _Rows:
    """Facts as right-padded rows; `time` and `tokens` are the longest row and the longest target."""

    ids: Tensor  # [rows, time]
    predictor: Tensor  # [rows, tokens] position whose hidden state predicts the target token
    target: Tensor  # [rows, tokens]
    mask: Tensor  # [rows, tokens] bool

    @classmethod
    def of(cls, facts: Sequence[EncodedFact], device: str) -> _Rows:
        time, tokens = max(len(f.ids) for f in facts), max(f.length for f in facts)
        ids = torch.zeros(len(facts), time, dtype=torch.long)
        predictor, target = (torch.zeros(len(facts), tokens, dtype=torch.long) for _ in range(2))
        mask = torch.zeros(len(facts), tokens, dtype=torch.bool)
        for row, fact in enumerate(facts):
            ids[row, : len(fact.ids)] = torch.tensor(fact.ids)
            predictor[row, : fact.length] = torch.arange(fact.length) + fact.prompt_length - 1
            target[row, : fact.length] = torch.tensor(fact.target)
            mask[row, : fact.length] = True
        return cls(*(tensor.to(device) for tensor in (ids, predictor, target, mask)))


class _Stack:
    """State of one stack in training. Axes: K adapters, b rows of a step, t target tokens of a row."""

    def __init__(
        self, base: Base, facts: Sequence[EncodedFact], placement: Placement, runs: Sequence[tuple[int, TrainConfig]]
    ) -> None:
        self.model, self.placement, self.runs = base.model, placement, list(runs)
        self.rows = _Rows.of(facts, base.device)
        self.head = frozen_head(base.model)
        self.forward: Forward = split(base.model, placement.first_layer, placement.first_sites, self.rows.ids)
        self.cached = self.forward.cache(self.rows.ids)
        dtype = "float64" if base.dtype == "float64" else "float32"
        self.stack = AdapterStack.start(placement.sites, self.runs, device=base.device, dtype=dtype)
        self.optimizer = StackedAdamW(self.stack.tensors)
        self.orders = [_order(len(facts), config) for _, config in self.runs]
        self.drops = [_stream(config.seed + _DROPOUT_STREAM, base.device) for _, config in self.runs]
        self.latest = torch.full((len(self.runs), *self.rows.mask.shape), torch.inf, device=base.device)
        self.alive = list(range(len(self.runs)))  # position in the stack -> index of the run
        self.results: dict[int, Trained] = {}

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
            rows = torch.stack([next(self.orders[index]) for index in self.alive]).to(self.rows.ids.device)
            self._step(step, rows, on_step)
            step += 1
        return [self.results[index] for index in range(len(self.runs))]

    def _step(self, step: int, rows: Tensor, on_step: Callable[[StackProgress], None] | None) -> None:
        """One optimizer step of every adapter on its `rows` [K, b]."""
        tensors = self.stack.tensors
        for tensor in tensors:
            tensor.requires_grad_(True)
        nll = self._nll(self.stack, rows, training=True)  # [K, b, t]
        mask = self.rows.mask[rows]
        loss = torch.stack([self._loss(config, nll[k], mask[k]) for k, config in enumerate(self.configs)])
        gradients = torch.autograd.grad(loss.sum(), tensors)
        nll = nll.detach()
        self._report(step, nll, mask, on_step)
        self._remember(rows, nll)
        done = self._recalled_now()
        broken = {k for k, finite in enumerate(loss.isfinite().tolist()) if not finite}
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # [K]
        broken |= {k for k, finite in enumerate(norms.isfinite().tolist()) if not finite}
        keep = [k for k in range(len(self.alive)) if k not in done and k not in broken]
        if keep:
            self._update(step, [g * self._clip(norms) for g in gradients], keep)
        self._leave(step, done - broken, broken, keep)

    def _loss(self, config: TrainConfig, nll: Tensor, mask: Tensor) -> Tensor:
        """Weighted mean over the tokens of the whole step: `nll`, `mask` [b, t] -> scalar."""
        flat, target = nll.flatten(), mask.flatten()
        weights = token_weights(flat, target, method=config.method, rule=config.rule, critical=LN2 - config.margin)
        return weighted_mean(flat, weights)

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

    def _remember(self, rows: Tensor, nll: Tensor) -> None:
        for k, index in enumerate(self.alive):
            self.latest[index, rows[k]] = nll[k].to(self.latest.dtype)

    def _recalled_now(self) -> set[int]:
        """Adapters that seem to have every token ordered, confirmed by an evaluation of all rows."""
        if all(config.until == "budget" for config in self.configs):
            return set()
        done = set()
        for k, (index, config) in enumerate(zip(self.alive, self.configs, strict=True)):
            if config.until == "recalled" and self._all_ordered(self.latest[index], config):
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
                message=""
                if finite
                else f"the loss was no longer a finite number at step {step}; a lower learning rate may help",
            )
        if keep:
            self.stack = self.stack.select(keep)
            self.optimizer = self.optimizer.select(keep, self.stack.tensors)
        self.alive = [self.alive[k] for k in keep]

    # --- forward passes ---

    def _nll(self, stack: AdapterStack | None, rows: Tensor, *, training: bool = False) -> Tensor:
        """nll [K, b, t] of the target tokens of `rows` [K, b], zero where a row has no such token."""
        copies, _ = rows.shape
        each = rows.flatten()
        mask = self.rows.mask[each]
        if stack is None:
            hidden = self.forward(self.cached[each])
        else:
            drop = self._dropout if training and any(config.dropout for config in self.configs) else None
            with stack.attached(self.model, drop=drop):
                hidden = self.forward(self.cached[each])
        start = torch.arange(len(each), device=each.device)[:, None] * hidden.shape[1]
        picked = hidden.flatten(0, 1)[(start + self.rows.predictor[each])[mask]]
        scores, _ = token_scores(self.head, picked, self.rows.target[each][mask])
        placed = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_scatter(mask, scores)
        return placed.view(copies, -1, mask.shape[1])

    @torch.no_grad()
    def _evaluate(self, stack: AdapterStack | None) -> Tensor:
        """nll [K, rows, t] of all rows, without dropout; of the base alone where `stack` is None (K = 1)."""
        copies = 1 if stack is None else len(stack)
        chunk = max(1, EVALUATION_TOKENS // (copies * self.rows.ids.shape[1]))
        everything = torch.arange(len(self.rows.ids), device=self.rows.ids.device)
        return torch.cat([self._nll(stack, part.expand(copies, -1)) for part in torch.split(everything, chunk)], dim=1)

    def _mean(self, nll: Tensor) -> Tensor:
        """Mean over target tokens: [K, rows, t] -> [K], summed in float64."""
        return nll[:, self.rows.mask].double().mean(dim=1)

    def _dropout(self, x: Tensor) -> Tensor:
        """Dropout on [K, tokens, d] with one random stream an adapter, so that stacking changes no mask."""
        kept = []
        for k, (index, config) in enumerate(zip(self.alive, self.configs, strict=True)):
            draw = torch.rand(x.shape[1:], generator=self.drops[index], device=x.device)
            kept.append(x[k] * (draw >= config.dropout) / (1 - config.dropout))
        return torch.stack(kept)

    def _report(self, step: int, nll: Tensor, mask: Tensor, on_step: Callable[[StackProgress], None] | None) -> None:
        if on_step is None:
            return
        values = nll[mask]
        stubborn = int((values >= LN2).sum())
        on_step(
            StackProgress(
                step=step + 1,
                steps=max(config.steps for config in self.configs),
                adapters=len(self.alive),
                loss=float(values.mean()),
                ordered=1 - stubborn / len(values),
                stubborn=stubborn,
                seconds=time.monotonic() - self.started,
            )
        )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Step size at `step` (from 0): constant, or falling linearly to 0 at `steps`."""
    left = 1 - step / config.steps if config.schedule == "linear" else 1.0
    return config.learning_rate * left


def _stream(seed: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _order(count: int, config: TrainConfig) -> Iterator[Tensor]:
    """Rows of each step, without end: all of them, or batches of a new random order every epoch.

    An epoch's last batch is filled up from the next epoch, so that every step has the same number of rows.
    """
    size = config.batch_size
    if not 0 < size < count:
        while True:
            yield torch.arange(count)
    stream = _stream(config.seed + _ORDER_STREAM, "cpu")
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=stream)])
        yield waiting[:size]
        waiting = waiting[size:]


class StackedAdamW:
    """AdamW on tensors [K, ...] with a learning rate and decay for each of the K; otherwise `torch.optim.AdamW`."""

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.count = 0
        self.first = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]
        self.second = [torch.zeros_like(tensor, requires_grad=False) for tensor in tensors]

    @torch.no_grad()
    def step(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], rates: Tensor, decays: Tensor) -> None:
        """In place: p -= rate * (decay * p + m_hat / (sqrt(v_hat) + eps)); `rates` and `decays` are [K]."""
        self.count += 1
        first_bias, second_bias = 1 - self.beta1**self.count, 1 - self.beta2**self.count
        for tensor, gradient, m, v in zip(tensors, gradients, self.first, self.second, strict=True):
            rate = rates.to(tensor.dtype).view(-1, 1, 1)
            tensor.mul_(1 - rate * decays.to(tensor.dtype).view(-1, 1, 1))
            m.lerp_(gradient, 1 - self.beta1)
            v.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            scale = (v / second_bias).sqrt_().add_(self.eps)
            tensor.sub_(rate / first_bias * m / scale)

    def select(self, keep: Sequence[int], like: Sequence[Tensor]) -> StackedAdamW:
        """The state of the adapters `keep`, cut to the shapes of the tensors `like`."""
        chosen = StackedAdamW(like)
        chosen.count = self.count
        index = list(keep)
        for old, new in ((self.first, chosen.first), (self.second, chosen.second)):
            for k, (source, target) in enumerate(zip(old, new, strict=True)):
                new[k] = source[index][:, : target.shape[1], : target.shape[2]].clone()
        return chosen
