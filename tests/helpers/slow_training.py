"""Training and decoding in their plainest form, to compare the fast code with."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.core.recall import LN2


def nll_of(model: nn.Module, fact: EncodedFact) -> Tensor:
    """-log p of each target token of one fact, one full forward, nothing padded."""
    logits = model(input_ids=torch.tensor([fact.ids])).logits[0].double()
    return F.cross_entropy(logits[fact.prompt_length - 1 : -1], torch.tensor(fact.target), reduction="none")


def mirrored_loss(model: nn.Module, facts: Sequence[EncodedFact], critical: float) -> Tensor:
    """The threshold loss and its mirror image, token by token: the mean of nll over the tokens to recall that are not
    below `critical`, and of -nll over those to forget that are below their floor."""
    terms = []
    for fact in facts:
        for place, nll in enumerate(nll_of(model, fact)):
            if not fact.floor and not nll < critical:
                terms.append(nll)
            if fact.floor and nll < fact.floor[place]:
                terms.append(-nll)
    return torch.stack(terms).mean()


def greedy(model: nn.Module, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy decoding with a whole forward for every token: no cache, no batch."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@dataclass(eq=False)
class Moment:
    """The place in a training that dropout masks depend on."""

    config: TrainConfig
    rows: int
    """Of a step."""
    time: int
    """Tokens of the longest fact."""
    step: int = 0
    row: int | None = None
    """Place in the step of the current fact; None without dropout."""


class OwnDropout(nn.Module):
    """Dropout at one site, with masks determined by the adapter's seed, the step, the site and the row."""

    def __init__(self, moment: Moment, site: str) -> None:
        super().__init__()
        self.moment, self.site = moment, site

    def forward(self, x: Tensor) -> Tensor:
        now, share = self.moment, self.moment.config.dropout
        if now.row is None or not share:
            return x
        seed = zlib.crc32(f"{now.config.seed}/{now.step}/{self.site}".encode()) + 2_000_003
        draw = torch.rand(now.rows, now.time, x.shape[-1], generator=torch.Generator().manual_seed(seed))
        return x * (draw[now.row, : x.shape[-2]] >= share) / (1 - share)


class PlainAdapter(nn.Module):
    """y = module(x) + scale * drop(x) A B, around any module: the adapter as the paper writes it."""

    def __init__(self, module: nn.Module, a: Tensor, b: Tensor, scale: float, drop: OwnDropout) -> None:
        super().__init__()
        self.module, self.scale, self.drop = module, scale, drop
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.module(x, *args, **kwargs)
        return out + self.scale * (self.drop(x) @ self.a @ self.b)


@dataclass(frozen=True, eq=False)
class Alone:
    """One adapter and its training."""

    model: nn.Module
    pairs: list[tuple[Tensor, Tensor]]
    """A [d_in, rank] and B [rank, d_out] of each site, after training."""
    losses: list[float]
    """Mean nll of the target tokens of each step, before the step."""


def train_alone(
    model: nn.Module,
    facts: Sequence[EncodedFact],
    placement: Placement,
    rank: int,
    config: TrainConfig,
    *,
    batches: Sequence[Sequence[int]],
) -> Alone:
    """PEFT (`PlainAdapter` at sites that PEFT does not support), torch.optim.AdamW, clip_grad_norm_, fact by fact.

    Starts from the same weights as the stack, on a copy of `model`, with a full forward and all logits.
    """
    wrap = _with_plain_adapters if placement.parallel else _with_peft
    now = Moment(config, rows=len(batches[0]), time=max(len(fact.ids) for fact in facts))
    drops = [OwnDropout(now, site.path) for site in placement.sites]
    tuned, halves = wrap(copy.deepcopy(model).requires_grad_(False).eval(), placement, rank, config, drops)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    latest = [torch.full([fact.length], torch.inf) for fact in facts]  # of each token, as at the last step that saw it
    passed: list[list[Tensor]] = []
    for step, batch in enumerate(batches):
        left = _left(latest, LN2 - config.margin)
        each = []
        for place, row in enumerate(batch):
            now.step, now.row = step, place
            each.append(nll_of(tuned, facts[row]))
        now.row, nll = None, torch.cat(each)
        losses.append(float(nll.detach().mean()))
        for row, own in zip(batch, each, strict=True):
            latest[row] = own.detach()
        critical = (LN2 - config.margin) * (1 - left**config.anneal if config.anneal else 1)
        active = torch.ones_like(nll) if config.method == "sft" else (nll.detach() >= critical).to(nll)
        if config.rule == "fallback" and not active.any():
            active = torch.ones_like(nll)
        optimizer.zero_grad()
        (active * nll).sum().backward()
        for parameter in parameters:  # d (sum / count) = (d sum) / count, and norms that round to float32 round d sum
            parameter.grad = parameter.grad / (active.sum() + 1e-8)
        if config.clip:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        factors = {
            "linear": 1 - step / config.steps,
            "constant": 1.0,
            "share": math.sqrt(_left(latest, LN2 - config.margin)),
        }
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * factors[config.schedule]
        optimizer.step()
        passed.append([parameter.detach().clone() for parameter in parameters])
    if config.average:
        _set_to_mean(parameters, passed, config.average)
    return Alone(tuned, [(a.detach(), b.detach()) for a, b in halves], losses)


def _left(latest: Sequence[Tensor], limit: float) -> float:
    """The share of all target tokens that are not below the limit."""
    return float((torch.cat(list(latest)) >= limit).double().mean())


def _set_to_mean(parameters: Sequence[nn.Parameter], passed: Sequence[Sequence[Tensor]], exponent: int) -> None:
    """The mean of the weights after each step t = 1, 2, ..., in proportion to t (t + 1) ... (t + exponent - 1)."""
    counts = [math.prod(range(step, step + exponent)) for step in range(1, len(passed) + 1)]
    with torch.no_grad():
        for place, parameter in enumerate(parameters):
            total = sum(count * step[place] for count, step in zip(counts, passed, strict=True))
            parameter.copy_(total / sum(counts))


def train_with_peft(
    model: nn.Module,
    facts: Sequence[EncodedFact],
    placement: Placement,
    rank: int,
    config: TrainConfig,
    *,
    batches: Sequence[Sequence[int]],
) -> tuple[nn.Module, list[float]]:
    """The PEFT model that `train_alone` gives, and the loss before each step."""
    alone = train_alone(model, facts, placement, rank, config, batches=batches)
    return alone.model, alone.losses


def _start(placement: Placement, rank: int, config: TrainConfig, model: Any) -> list[tuple[Tensor, Tensor]]:
    """The stack's initial weights of each site: A [d_in, rank], B [rank, d_out]."""
    dtype = str(model.dtype).removeprefix("torch.")
    start = AdapterStack.start(placement.sites, [(rank, config)], device="cpu", dtype=dtype)
    return [(a[0], b[0]) for a, b in start.pairs]


def _with_peft(
    model: Any, placement: Placement, rank: int, config: TrainConfig, drops: Sequence[OwnDropout]
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    from peft import LoraConfig, get_peft_model

    pairs, dtype = _start(placement, rank, config, model), model.dtype
    tuned = get_peft_model(model, LoraConfig(**placement.lora_config(rank, scale=config.factor(rank)))).to(dtype)
    halves = []
    for site, (a, b), drop in zip(placement.sites, pairs, drops, strict=True):
        module: Any = tuned.get_submodule(f"base_model.model.{site.path}")
        module.lora_dropout["default"] = drop
        first, second = module.lora_A["default"].weight, module.lora_B["default"].weight
        with torch.no_grad():
            first.copy_(a.T)
            second.copy_(b.T)
        halves.append((first.T, second.T))
    return tuned.eval(), halves


def _with_plain_adapters(
    model: Any, placement: Placement, rank: int, config: TrainConfig, drops: Sequence[OwnDropout]
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    halves = []
    for site, (a, b), drop in zip(placement.sites, _start(placement, rank, config, model), drops, strict=True):
        adapter = PlainAdapter(model.get_submodule(site.path), a, b, config.factor(rank), drop)
        model.set_submodule(site.path, adapter)
        halves.append((adapter.a, adapter.b))
    return model.eval(), halves
