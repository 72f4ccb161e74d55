"""What does not change while a stack trains, and what it computes: gradients of a step, losses of all rows."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack, Dropout
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.core.recall import LN2
from memlaw.losses import EPS, WindowPass, WindowState, pointwise_weights, record_factor
from memlaw.losses.head_pass import HeadPass, Weigh, head_pass, token_scores
from memlaw.model.base import Base
from memlaw.model.head import frozen_head
from memlaw.model.memory import counting_saved, out_of_memory
from memlaw.model.parts import frozen
from memlaw.model.prefix_cache import PrefixCache
from memlaw.model.split import Forward, split
from memlaw.training.optimizer import StackedAdamW
from memlaw.training.rows import Batch, Rows, row_order
from memlaw.training.state import State

EVALUATION_TOKENS = 32768
"""Tokens in one forward of an evaluation: bounds its memory."""

_DROPOUT_STREAM = 2_000_003


@dataclass(frozen=True, eq=False)
class Step:
    """What one step found, before anything changes."""

    gradients: list[Tensor]
    """Of each adapter's own loss in its own tensors, each [K, ...]."""
    loss: Tensor
    """[K], mean nll of the step's target tokens in nats."""
    ordered: Tensor
    """[K], how many of them have p > 1/2."""
    tokens: Tensor
    """[K], how many there are."""
    latest: Tensor
    """[K, rows, tokens]: `State.latest` with what this step saw, if any adapter waits for the recall of its tokens."""
    windows: list[WindowPass]
    """Of the sliding windows, to be committed once the step is taken."""


class Engine:
    """The frozen base, the facts and the runs. Axes: K adapters, b rows of a step, t target tokens of a row."""

    def __init__(
        self,
        base: Base,
        facts: Sequence[EncodedFact],
        placements: Sequence[Placement],
        runs: Sequence[tuple[int, TrainConfig]],
        *,
        compiled: bool,
        prefix: PrefixCache | None = None,
    ) -> None:
        self.model, self.fingerprint, self.device = base.model, base.fingerprint, base.device
        self.facts, self.placements, self.runs = tuple(facts), tuple(placements), tuple(runs)
        everywhere = {site for placement in placements for site in placement.sites}
        self.sites = tuple(sorted(everywhere, key=lambda site: (site.layer, site.path)))
        self.compiled = compiled
        self.dtype = "float64" if base.dtype == "float64" else "float32"
        self.rows = Rows.of(facts, base.device)
        self.head = frozen_head(base.model)
        first, last = self.sites[0].layer, self.sites[-1].layer
        first_sites = [site.path for site in self.sites if site.layer == first]
        self.forward: Forward = split(base.model, first, first_sites, self.rows.ids, last)
        if compiled:
            self.forward.compile_above()
        ids = self.rows.ids
        self.cached = self.forward.cache(ids) if prefix is None else prefix.states(base, first_sites, self.forward, ids)
        self.windows = WindowState(len(runs) * len(self.rows), device=base.device)
        self.evaluation_tokens = EVALUATION_TOKENS
        self._orders = [_Order(len(facts), config) for _, config in runs]
        self._latest_rows: Tensor | None = None
        self._latest_size = 0
        self._latest_parts: list[_Part] = []
        self._latest_inputs: Tensor | None = None

    def start(self) -> State:
        """All adapters, untrained."""
        own = [placement.sites for placement in self.placements]
        stack = AdapterStack.start(self.sites, self.runs, device=self.device, dtype=self.dtype, own=own)
        return State(
            runs=tuple(range(len(self.runs))),
            configs=tuple(config for _, config in self.runs),
            stack=stack,
            optimizer=StackedAdamW(stack.tensors),
            latest=torch.full((len(self.runs), *self.rows.mask.shape), torch.inf, device=self.device),
        )

    # --- a step ---

    def step(self, state: State) -> Step:
        """The next step of all adapters, which changes nothing: it can be asked for again.

        Each adapter's loss is the mean over the weighted tokens of its whole step (`losses.weighted_mean`): what is
        summed over the parts of a step is divided at the end.
        """
        rows = torch.stack([self._orders[run].at(state.step) for run in state.runs]).to(self.device)
        parts = self._parts(rows, state.rows_at_once or rows.shape[1])
        windows: list[WindowPass] = []
        found = self._summed(state, parts, lambda batch, hidden: self._by_method(state, batch, hidden, windows))
        back = state.settings.fallback & (found.weight == 0)
        if back.any():  # nothing left under the threshold: these adapters train on all their tokens after all
            again = self._summed(state, parts, lambda batch, _hidden: _all_tokens_of(back, batch))
            found.gradients = [a + b for a, b in zip(found.gradients, again.gradients, strict=True)]
            found.weight = found.weight + again.weight
        waiting = bool(state.settings.until_recalled.any())
        return Step(
            gradients=[gradient / (found.weight + EPS).view(-1, 1, 1) for gradient in found.gradients],
            loss=found.nll / found.tokens,
            ordered=found.ordered,
            tokens=found.tokens,
            latest=_seen(state.latest, found.parts) if waiting else state.latest,
            windows=windows,
        )

    def _summed(self, state: State, parts: Sequence[_Part], weighing: Callable[[Batch, Tensor], Weigh]) -> _Sums:
        """sum_t w_t nll_t of each adapter, its gradient, and what else is summed on the way."""
        tensors = [tensor.requires_grad_(True) for tensor in state.stack.tensors]
        sums = _Sums.of(tensors)
        for part in parts:
            drop = self._dropout(state, part) if any(config.dropout for config in state.configs) else None
            with state.stack.attached(self.model, drop=drop):
                hidden = self.forward(self._inputs(part)).flatten(0, 1)[part.batch.predictors]
            found = head_pass(self.head, hidden, part.batch.targets, weighing(part.batch, hidden))
            if found.gradient.any():  # NaN is something, too
                sums.pull(torch.autograd.grad(hidden, tensors, found.gradient))
            sums.count(part.batch, found)
        return sums

    def _by_method(self, state: State, batch: Batch, hidden: Tensor, windows: list[WindowPass]) -> Weigh:
        """The weights of each adapter's method; passes of a sliding window are added to `windows`."""
        settings = state.settings
        every, limit, windowed = (t[batch.owners] for t in (settings.every, settings.limit, settings.windowed))
        window: Weigh | None = None
        if windowed.any():
            slots = torch.tensor(state.runs, device=self.device)[batch.owners] * len(self.rows) + batch.samples
            window = WindowPass(self.windows, slots.where(windowed, -1), batch.positions, critical=limit)
            windows.append(window)

        def in_order(nll: Tensor, hit: Tensor, part: slice) -> Tensor:
            weights = pointwise_weights(nll, every=every[part], critical=limit[part])
            return weights if window is None else torch.where(windowed[part], window(nll, hit, part), weights)

        if not (settings.position.any() or settings.focus.any()):
            return in_order
        # What depends on a whole record is known only behind its last token: the losses are computed beforehand.
        nll, hit = token_scores(self.head, hidden, batch.targets)
        weights = in_order(nll, hit, slice(0, len(nll)))
        position, focus = settings.position[batch.owners], settings.focus[batch.owners]
        weights = weights * record_factor(nll, batch.records, critical=limit, position=position, focus=focus)
        return lambda _nll, _hit, part: weights[part]

    def _parts(self, rows: Tensor, size: int) -> list[_Part]:
        """The rows [K, b] of a step, `size` of each adapter's at a time; the parts made last if they are the same."""
        if self._latest_rows is None or size != self._latest_size or not torch.equal(self._latest_rows, rows):
            self._latest_rows, self._latest_size = rows, size
            starts = range(0, rows.shape[1], size)
            self._latest_parts = [
                _Part(Batch.of(rows[:, at : at + size], self.rows), at, rows.shape[1]) for at in starts
            ]
            self._latest_inputs = None
        return self._latest_parts

    def _inputs(self, part: _Part) -> Tensor:
        """Cached states [K * b, time, ...] of a part, kept for the next step if it may be the same."""
        if len(self._latest_parts) > 1:
            return self._cached_of(part.batch)
        if self._latest_inputs is None:
            self._latest_inputs = self._cached_of(part.batch)
        return self._latest_inputs

    def _cached_of(self, batch: Batch) -> Tensor:
        return self.cached[batch.each.to(self.cached.device)].to(self.device)

    def _dropout(self, state: State, part: _Part) -> Dropout:
        """The mask is a function of the adapter's seed, the step, the site and the row's place in the step: neither the
        company in the stack, nor the parts a step is cut into, nor an interruption changes it.
        """

        def drop(x: Tensor, /, path: str) -> Tensor:
            time = x.shape[1] // part.rows
            kept = []
            for k, config in enumerate(state.configs):
                name = f"{config.seed}/{state.step}/{path}"
                stream = torch.Generator(x.device).manual_seed(zlib.crc32(name.encode()) + _DROPOUT_STREAM)
                draw = torch.rand(part.of, time, x.shape[2], generator=stream, device=x.device)
                mask = draw[part.at : part.at + part.rows].flatten(0, 1) >= config.dropout
                kept.append(x[k] * mask / (1 - config.dropout))
            return torch.stack(kept)

        return drop

    # --- all rows ---

    @torch.no_grad()
    def evaluate(self, stack: AdapterStack | None) -> Tensor:
        """nll [K, rows, tokens] of all rows, without dropout, zero where there is no token; of the base alone, K = 1,
        where `stack` is None."""
        copies = 1 if stack is None else len(stack)
        everything = torch.arange(len(self.rows), device=self.device)
        while True:
            size = max(1, self.evaluation_tokens // (copies * self.rows.ids.shape[1]))
            try:
                nll = [self._nll(stack, part.expand(copies, -1)) for part in torch.split(everything, size)]
                return torch.cat(nll, dim=1)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or size == 1:
                    raise
            self.evaluation_tokens //= 2

    def _nll(self, stack: AdapterStack | None, rows: Tensor) -> Tensor:
        """nll [K, b, tokens] of the target tokens of `rows` [K, b]."""
        batch = Batch.of(rows, self.rows)
        with nullcontext() if stack is None else stack.attached(self.model):
            hidden = self.forward(self._cached_of(batch)).flatten(0, 1)[batch.predictors]
        return batch.padded(token_scores(self.head, hidden, batch.targets)[0])

    def mean(self, nll: Tensor) -> Tensor:
        """Mean over target tokens: [K, rows, tokens] -> [K], summed in float64."""
        return nll[:, self.rows.mask].double().mean(dim=1)

    def all_ordered(self, nll: Tensor, limit: Tensor) -> Tensor:
        """Whether all target tokens are below `limit` [K] nats: [K, rows, tokens] -> [K] bool."""
        return ((nll < limit.view(-1, 1, 1)) | ~self.rows.mask).flatten(1).all(dim=1)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some of each adapter's rows of a step."""

    batch: Batch
    at: int
    """The first of them."""
    of: int
    """How many the step has."""

    @property
    def rows(self) -> int:
        return self.batch.rows.shape[1]


@dataclass(eq=False)
class _Sums:
    """Over the parts of a step; all [K] but the gradients."""

    gradients: list[Tensor]
    weight: Tensor
    nll: Tensor
    ordered: Tensor
    tokens: Tensor
    parts: list[tuple[Batch, Tensor]]
    """The nll [n] of each part."""

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Sums:
        zero = tensors[0].new_zeros(len(tensors[0]), requires_grad=False)
        return cls([torch.zeros_like(t, requires_grad=False) for t in tensors], zero, zero, zero, zero, [])

    def pull(self, gradients: Sequence[Tensor]) -> None:
        first = not self.parts
        self.gradients = list(gradients) if first else [a + b for a, b in zip(self.gradients, gradients, strict=True)]

    def count(self, batch: Batch, found: HeadPass) -> None:
        self.weight = self.weight + batch.summed(found.weights)
        self.nll = self.nll + batch.summed(found.nll)
        self.ordered = self.ordered + batch.summed((found.nll < LN2).to(found.nll.dtype))
        self.tokens = self.tokens + batch.mask.flatten(1).sum(dim=1)
        self.parts.append((batch, found.nll))


def bytes_per_token(base: Base, fact: EncodedFact, placement: Placement, rank: int) -> float:
    """Memory that one step of one adapter holds for each target token of a fact, gradients included.

    The states kept for the backward pass are counted; the gradients in them take as much again at most.
    """
    config = TrainConfig(steps=1)
    with frozen(base.model):
        engine = Engine(base, [fact], [placement], [(rank, config)], compiled=False)
        with counting_saved([*base.model.parameters(), *base.model.buffers()]) as saved:
            engine.step(engine.start())
    return 2 * saved() / fact.length


def _all_tokens_of(chosen: Tensor, batch: Batch) -> Weigh:
    """Weight 1 for all tokens of the adapters `chosen` [K], 0 for those of the others."""
    return lambda nll, _hit, part: chosen[batch.owners[part]].to(nll.dtype)


def _seen(latest: Tensor, parts: Sequence[tuple[Batch, Tensor]]) -> Tensor:
    """`latest` [K, rows, tokens] with the nll that parts of a step found."""
    latest = latest.clone()
    adapters = torch.arange(len(latest), device=latest.device)[:, None]
    for batch, nll in parts:
        latest[adapters, batch.rows] = batch.padded(nll).to(latest.dtype)
    return latest


class _Order:
    """The rows of a run's steps, each step's for as long as it is asked for."""

    def __init__(self, count: int, config: TrainConfig) -> None:
        self.rest = row_order(count, config)
        self.step = -1

    def at(self, step: int) -> Tensor:
        """Rows [b] of `step`, which never falls. A run that is resumed draws those of the steps before it again."""
        for _ in range(step - self.step):
            self.rows = next(self.rest)
        self.step = step
        return self.rows
