"""The frozen base, the facts and the runs of a stack, and what is computed with them: step gradients, row losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import Execution, TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.losses import EPS, WindowPass, WindowState, pointwise_weights, record_factor
from memlaw.losses.head_pass import Weigh, head_pass, token_scores
from memlaw.model.base import Base
from memlaw.model.head import FrozenHead, frozen_head
from memlaw.model.memory import counting_saved, out_of_memory
from memlaw.model.parts import frozen
from memlaw.training.optimizers.by_name import OPTIMIZERS
from memlaw.training.protection import Protection, own_text, protection_at
from memlaw.training.rehearsal import Rehearsal
from memlaw.training.rows import Batch, Rows
from memlaw.training.run import Run
from memlaw.training.stalling import halving
from memlaw.training.state import State
from memlaw.training.step import Part, RowOrder, Step, StepSums, dropout_mask, with_losses
from memlaw.training.suffix import Suffix

EVALUATION_TOKENS = 32768
"""Tokens in one forward of an evaluation: bounds its memory."""


@dataclass(frozen=True, eq=False)
class Place:
    """One of the bases on which the facts are trained, and its part of the rows."""

    base: Base
    head: FrozenHead
    suffix: Suffix
    first: int
    """The first of its rows among those of all bases."""

    def states_of(self, rows: Tensor) -> Tensor:
        """The states [n, time, ...] of `rows` [n], counted among those of all bases."""
        return self.suffix.states_of(rows - self.first)


class Engine:
    """Computes with frozen bases, changing neither adapters nor bases.

    `also` are further bases with the same modules, on which the facts must come back as well. Every fact is a row of
    its own on each of them, and a step sees its rows on all.
    Axes: K adapters, b rows of a step, t target tokens of a row, n target tokens of all rows.
    """

    def __init__(
        self,
        base: Base,
        facts: Sequence[EncodedFact],
        runs: Sequence[Run],
        execution: Execution | None = None,
        also: Sequence[Base] = (),
    ) -> None:
        execution = execution or Execution()
        bases = (base, *also)
        self.fingerprint, self.device = base.fingerprint, base.device
        self.facts, self.runs = tuple(facts), tuple(runs)
        everywhere = {site for run in runs for site in run.placement.sites}
        self.sites = tuple(sorted(everywhere, key=lambda site: (site.layer, site.path)))
        self.compiled = execution.compiled
        self.dtype = "float64" if base.dtype == "float64" else "float32"
        self.rows = Rows.from_facts([*facts] * len(bases), base.device)
        self.forgets = bool(self.rows.unwanted.any())
        self.places = tuple(self._place(number, one, execution) for number, one in enumerate(bases))
        self.neutral = self._neutral(base)
        self.rehearsal = self._rehearsal(base)
        self.protection = self._protection(base)
        self.averages = any(run.config.average for run in runs)
        self.windows = WindowState(len(runs) * len(self.rows), device=base.device)
        self.evaluation_tokens = EVALUATION_TOKENS
        self._orders = [RowOrder(len(facts), run.config) for run in runs]
        self._latest_rows: Tensor | None = None
        self._latest_size = 0
        self._latest_parts: list[Part] = []
        self._latest_inputs: Tensor | None = None

    def _place(self, number: int, base: Base, execution: Execution) -> Place:
        first = number * len(self.facts)
        ids = self.rows.ids[first : first + len(self.facts)]
        return Place(base, frozen_head(base.model), Suffix.of_rows(base, self.sites, ids, execution), first)

    def advance(self, state: State, step: Step) -> None:
        """Take the step: change the adapters, in place."""
        norms = step.norms
        gradients = [g * _clipping(state.settings.clip, norms).to(g.dtype) for g in step.gradients]
        for window in step.windows:
            window.commit()
        most = torch.tensor([best.most for best in state.fewest], dtype=torch.float64, device=self.device)
        left = self.left(step.latest, state.settings.limit)
        rates = state.settings.learning_rates(state.step, left / most.clamp(min=EPS))
        state.optimizer.step(state.stack.tensors, gradients, rates, state.settings.weight_decay)
        state.halvings = tuple(
            halved + halving(best, state.step) for halved, best in zip(state.halvings, state.fewest, strict=True)
        )
        state.step += 1
        if state.average is not None:
            newest = state.settings.newest(state.step)
            for mean, tensor in zip(state.average.tensors, state.stack.tensors, strict=True):
                mean.lerp_(tensor.detach(), newest.to(mean).view(-1, 1, 1))

    def _neutral(self, base: Base) -> Tensor | None:
        """The text that protected runs are to leave as it is, if there are any."""
        texts = [run.neutral for run in self.runs if run.config.protect]
        if not texts:
            return None
        return own_text(base) if texts[0] is None else texts[0]

    def _rehearsal(self, base: Base) -> Rehearsal | None:
        """The near misses that the runs rehearse, if they do."""
        run = self.runs[0]
        if not (run.config.rehearse and run.near_misses):
            return None
        return Rehearsal(base, self.places[0].head, self.sites, run.near_misses)

    def _protection(self, base: Base) -> Protection | None:
        """What predicts the drift of these adapters, if any of them is protected."""
        if self.neutral is None:
            return None
        try:
            own = all(run.neutral is None for run in self.runs)
            return protection_at(base, self.places[0].head, self.sites, self.neutral.to(self.device), own=own)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        warnings.warn(
            "What protects the model does not fit in memory: training goes on without it. Measure the side effects.",
            stacklevel=2,
        )
        return None

    def start(self) -> State:
        """All adapters before the first step: untrained, or as the adapters that they go on from."""
        own = [run.placement.sites for run in self.runs]
        ranked = [(run.rank, run.config) for run in self.runs]
        stack = AdapterStack.start(self.sites, ranked, device=self.device, dtype=self.dtype, own=own)
        for k, run in enumerate(self.runs):
            if run.start is not None:
                stack.continue_from(run.start, k)
        return State(
            runs=tuple(range(len(self.runs))),
            configs=tuple(run.config for run in self.runs),
            stack=stack,
            optimizer=OPTIMIZERS[self.runs[0].config.optimizer](
                stack.tensors, stack.ranks, [run.config.momentum for run in self.runs]
            ),
            latest=self._unknown().expand(len(self.runs), -1, -1).clone(),
            average=stack.select(range(len(stack))) if self.averages else None,
        )

    def _unknown(self) -> Tensor:
        """[rows, tokens] losses before any step has seen them: as far from where they should be as can be."""
        return torch.where(self.rows.unwanted, -torch.inf, torch.inf).to(self.device)

    def step(self, state: State) -> Step:
        """The next step of all adapters. Nothing changes, so it may be computed again after running out of memory.

        Each adapter's loss is the mean over the weighted tokens of its whole step (`losses.weighted_mean`): parts of a
        step are summed and divided at the end.
        """
        chosen = torch.stack([self._orders[run].rows_of(state.step) for run in state.runs])
        forwarded = self.rows.lengths[chosen].sum(dim=1) * len(self.places)
        rows = chosen.to(self.device)
        parts = self._parts(rows, state.rows_at_once or rows.shape[1])
        windows: list[WindowPass] = []
        sums = self._summed(state, parts, lambda part, hidden: self._by_method(state, part, hidden, windows))
        back = state.settings.fallback & (sums.weight == 0)
        if back.any():  # no token left under the threshold: rule fallback trains these adapters on all tokens
            again = self._summed(state, parts, lambda part, _hidden: _all_tokens_of(back, part.batch))
            sums.gradients = [a + b for a, b in zip(sums.gradients, again.gradients, strict=True)]
            sums.weight = sums.weight + again.weight
            forwarded = forwarded * (1 + back.cpu().long())
        settings = state.settings
        following = settings.until_recalled | settings.by_share | (settings.anneal > 0) | (settings.protect > 0)
        gradients = [gradient / (sums.weight + EPS).view(-1, 1, 1) for gradient in sums.gradients]
        return Step(
            gradients=self._protected(state, gradients),
            loss=sums.nll / sums.tokens.clamp(min=1),  # a step may see nothing but what is to be forgotten
            ordered=sums.ordered,
            tokens=sums.tokens,
            forwarded=forwarded,
            latest=with_losses(state.latest, sums.parts) if following.any() else state.latest,
            windows=windows,
        )

    def _protected(self, state: State, gradients: list[Tensor]) -> list[Tensor]:
        """The gradients of the loss on the facts, with those of near misses and of the weighted drift added."""
        if self.rehearsal is not None:
            near = self.rehearsal.gradients(state, state.configs[0].rehearse)
            gradients = [gradient + own for gradient, own in zip(gradients, near, strict=True)]
        if self.protection is None:
            return gradients
        halved = torch.tensor(state.halvings, dtype=torch.float64, device=self.device)
        weight = (state.settings.protect * torch.exp2(-halved)).to(gradients[0]).view(-1, 1, 1)
        drift = self.protection.gradients(state.stack)
        return [gradient + weight * own for gradient, own in zip(gradients, drift, strict=True)]

    def _summed(self, state: State, parts: Sequence[Part], weighing: Callable[[Part, Tensor], Weigh]) -> StepSums:
        """sum_t w_t nll_t of each adapter, its gradient, and the other sums over a step."""
        tensors = [tensor.requires_grad_(True) for tensor in state.stack.tensors]
        sums = StepSums.zero(tensors)
        for part in parts:
            place = self.places[part.place]
            drop = dropout_mask(state, part) if any(config.dropout for config in state.configs) else None
            with state.stack.attached(place.base.model, drop=drop):
                hidden = place.suffix.forward(self._inputs(part)).flatten(0, 1)[part.batch.predictors]
            scored = head_pass(place.head, hidden, part.batch.targets, weighing(part, hidden))
            if scored.gradient.any():  # NaN counts as well: a diverged run must not pass for a finished one
                sums.add_gradients(torch.autograd.grad(hidden, tensors, scored.gradient))
            sums.add_losses(part.batch, scored)
        return sums

    def _by_method(self, state: State, part: Part, hidden: Tensor, windows: list[WindowPass]) -> Weigh:
        """The weights of each adapter's method; passes of a sliding window are added to `windows`."""
        settings, batch = state.settings, part.batch
        critical = settings.training_limit(self.left(state.latest, settings.limit))
        every, limit, windowed = (t[batch.owners] for t in (settings.every, critical, settings.windowed))
        window: Weigh | None = None
        if windowed.any():
            slots = torch.tensor(state.runs, device=self.device)[batch.owners] * len(self.rows) + batch.samples
            window = WindowPass(self.windows, slots.where(windowed, -1), batch.positions, critical=limit)
            windows.append(window)

        def in_order(nll: Tensor, hit: Tensor, part: slice) -> Tensor:
            weights = pointwise_weights(nll, every=every[part], critical=limit[part])
            return weights if window is None else torch.where(windowed[part], window(nll, hit, part), weights)

        if not (settings.position.any() or settings.focus.any()):
            return self._forgetting(in_order, batch)
        # These factors depend on a record's last token, so all losses are computed before the first is weighed.
        nll, hit = token_scores(self.places[part.place].head, hidden, batch.targets)
        weights = in_order(nll, hit, slice(0, len(nll)))
        position, focus = settings.position[batch.owners], settings.focus[batch.owners]
        weights = weights * record_factor(nll, batch.records, critical=limit, position=position, focus=focus)
        return self._forgetting(lambda _nll, _hit, part: weights[part], batch)

    def _forgetting(self, weigh: Weigh, batch: Batch) -> Weigh:
        """`weigh` for the tokens to recall, and the weights of those that must not come back."""
        if not self.forgets:
            return weigh
        return lambda nll, hit, part: unwanted_weights(weigh(nll, hit, part), nll, batch.floor[part])

    def _parts(self, rows: Tensor, size: int) -> list[Part]:
        """The rows [K, b] of a step on every base, `size` of each adapter's at a time; the previous parts if they are
        the same."""
        if self._latest_rows is None or size != self._latest_size or not torch.equal(self._latest_rows, rows):
            self._latest_rows, self._latest_size = rows, size
            starts = range(0, rows.shape[1], size)
            self._latest_parts = [
                Part(Batch.from_rows(place.first + rows[:, at : at + size], self.rows), at, rows.shape[1], number)
                for number, place in enumerate(self.places)
                for at in starts
            ]
            self._latest_inputs = None
        return self._latest_parts

    def _inputs(self, part: Part) -> Tensor:
        """Cached states [K * b, time, ...] of a part; those of an undivided step are kept for the next step."""
        place = self.places[part.place]
        if len(self._latest_parts) > 1:
            return place.states_of(part.batch.each)
        if self._latest_inputs is None:
            self._latest_inputs = place.states_of(part.batch.each)
        return self._latest_inputs

    @torch.no_grad()
    def evaluate(self, stack: AdapterStack | None) -> Tensor:
        """nll [K, rows, tokens] of all rows, without dropout; zero in padding. None is the base alone, K = 1."""
        copies = 1 if stack is None else len(stack)
        everything = torch.arange(len(self.facts), device=self.device)
        while True:
            size = max(1, self.evaluation_tokens // (copies * self.rows.ids.shape[1]))
            try:
                nll = [
                    self._nll(place, stack, place.first + part.expand(copies, -1))
                    for place in self.places
                    for part in torch.split(everything, size)
                ]
                return torch.cat(nll, dim=1)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or size == 1:
                    raise
            self.evaluation_tokens //= 2

    def _nll(self, place: Place, stack: AdapterStack | None, rows: Tensor) -> Tensor:
        """nll [K, b, tokens] of the target tokens of `rows` [K, b], which are those of `place`."""
        batch = Batch.from_rows(rows, self.rows)
        with nullcontext() if stack is None else stack.attached(place.base.model):
            hidden = place.suffix.forward(place.states_of(batch.each)).flatten(0, 1)[batch.predictors]
        return batch.padded(token_scores(place.head, hidden, batch.targets)[0])

    def mean(self, nll: Tensor) -> Tensor:
        """Mean over the target tokens to recall: [K, rows, tokens] -> [K], summed in float64; 0 without any."""
        wanted = nll[:, self.rows.wanted].double()
        return wanted.mean(dim=1) if wanted.shape[1] else wanted.sum(dim=1)

    def left(self, nll: Tensor, limit: Tensor) -> Tensor:
        """Share of the target tokens that are not below `limit` [K] nats, or, of those that must not come back, below
        their floor: [K, rows, tokens] -> [K]."""
        there = ~(nll < limit.view(-1, 1, 1)) & self.rows.mask  # not picked out by the mask: a GPU would wait for that
        if self.forgets:
            there = torch.where(self.rows.unwanted, nll < self.rows.floor, there)
        return there.flatten(1).sum(dim=1).double() / self.rows.mask.sum()

    def all_ordered(self, nll: Tensor, limit: Tensor) -> Tensor:
        """Whether all target tokens are where they should be (`left`): [K, rows, tokens] -> [K] bool."""
        return self.left(nll, limit) == 0


def bytes_per_token(base: Base, fact: EncodedFact, placement: Placement, rank: int) -> float:
    """Memory that one step of one adapter holds for each target token of a fact, gradients included.

    Counts the states kept for the backward pass; their gradients take as much again at most.
    """
    with frozen(base.model):
        engine = Engine(base, [fact], [Run(rank, placement, TrainConfig(steps=1))])
        with counting_saved([*base.model.parameters(), *base.model.buffers()]) as saved:
            engine.step(engine.start())
    return 2 * saved() / fact.length


def unwanted_weights(weights: Tensor, nll: Tensor, floor: Tensor) -> Tensor:
    """`weights` [n], but of tokens with a floor -1 below it and 0 above: the mirror image of the threshold loss.

    A negative weight raises the loss of a token; once the loss has reached the floor, it is not pushed any further.
    """
    return torch.where(floor > -torch.inf, -(nll < floor).to(weights.dtype), weights)


def _all_tokens_of(chosen: Tensor, batch: Batch) -> Weigh:
    """Weight 1 for all tokens to recall of the adapters `chosen` [K], 0 for those of the others."""
    return lambda nll, _hit, part: (chosen[batch.owners[part]] & batch.wanted[part]).to(nll.dtype)


def _clipping(limit: Tensor, norms: Tensor) -> Tensor:
    """Factor [K, 1, 1] that bounds each adapter's gradient norm, as `torch.nn.utils.clip_grad_norm_` does."""
    return (limit / (norms + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
