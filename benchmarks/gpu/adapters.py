"""Steps of K adapters as one memlaw stack, against the same adapters one after another in PEFT, on a model of 8B.

Both sides train rank-8 LoRA in float32 on the default placement of a model in bfloat16, on one fact of 200 or 2,000
random tokens, with AdamW and clipping. PEFT runs the model's own forward pass and `F.cross_entropy` of its bfloat16
logits. `ratio` is K times PEFT's step over the stack's step; `floor_ms` is what the products of the stack's step take
at the rate of large ones.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from sides import Batch, batch_of, peft_arm, random_fact

from gpu.environment import seconds_each
from gpu.models import flops_of_suffix, random_base
from gpu.section import Peak, Section, synchronize
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import Placement
from memlaw.core.config import Execution, TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.model.base import Base
from memlaw.training.result import StackProgress
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

RANK, RATE = 8, 1e-3
"""A rate at which losses in bfloat16 still say that both sides train the same."""

WARM = 3


class Mark(NamedTuple):
    step: int
    adapters: int
    at: float
    """Seconds, by the clock."""


class Bench:
    """A model and one fact, and the two sides that store it."""

    def __init__(self, section: Section, base: Base, tokens: int) -> None:
        self.section, self.base, self.tokens = section, base, tokens
        self.placement: Placement = placement_on(None, base.model)
        self.fact: EncodedFact = random_fact(tokens, base.model.config.vocab_size)
        long = tokens > 500
        self.steps = 3 if section.small else (6 if long else 20)

    def config(self, seed: int) -> TrainConfig:
        return TrainConfig(steps=WARM + self.steps, learning_rate=RATE, seed=seed)

    def stack(self, count: int, compiled: bool = False) -> Mapping[str, Any]:
        """One step of `count` adapters; if they did not fit at once, that of all parts one after another."""
        marks: list[Mark] = []

        def mark(progress: StackProgress) -> None:
            synchronize(self.section.device)
            marks.append(Mark(progress.step, progress.adapters, time.perf_counter()))

        peak, begun = Peak(self.section.device), time.perf_counter()
        runs = [Run(RANK, self.placement, self.config(seed)) for seed in range(count)]
        trained = train_stack(self.base, [self.fact], runs, execution=Execution(compiled=compiled), on_step=mark)
        parts = [part for part in in_parts(marks) if part[-1].step == WARM + self.steps]
        step = sum(_median_step([mark.at for mark in part]) for part in parts)
        return {
            "step_ms": 1e3 * step,
            "adapter_steps_per_second": count / step,
            "tokens_per_second": count * self.tokens / step,
            "adapters_at_once": [part[0].adapters for part in parts],
            "first_step_after_seconds": marks[0].at - begun,
            "loss_first": trained[0].loss_init,
            "loss_last": trained[0].loss_final,
            **peak.read(),
        }

    def peft(self) -> Mapping[str, Any]:
        """One step of one adapter, by the code that anybody would write: nothing in it waits for the GPU."""
        peak, losses = Peak(self.section.device), []
        ids, labels = batch_of([self.fact])
        batch: Batch = (ids.to(self.section.device), labels.to(self.section.device))
        config = self.config(0)
        with peft_arm(self.base.model, self.placement, RANK, config) as arm:
            optimizer = torch.optim.AdamW(arm.parameters, lr=RATE, weight_decay=0.0)
            for step in range(config.steps):
                if step == WARM:
                    synchronize(self.section.device)
                    begun = time.perf_counter()
                for group in optimizer.param_groups:
                    group["lr"] = RATE * (1 - step / config.steps)
                optimizer.zero_grad()
                loss = arm.loss(batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(arm.parameters, config.clip)
                optimizer.step()
                losses.append(loss.detach())
            synchronize(self.section.device)
            seconds = (time.perf_counter() - begun) / self.steps
            with torch.no_grad():
                losses.append(arm.loss(batch))
        return {
            "step_ms": 1e3 * seconds,
            "loss_first": float(losses[0]),
            "loss_last": float(losses[-1]),
            **peak.read(),
        }

    def profile(self, count: int) -> Mapping[str, Any]:
        """What a step of a stack spends on the device: milliseconds in all, and of the kernels that take most."""
        on_gpu = self.section.device == "cuda"
        activity = torch.profiler.ProfilerActivity
        profiler = torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU])
        ends: list[float] = []

        def mark(progress: StackProgress) -> None:
            synchronize(self.section.device)
            if progress.step == WARM:
                profiler.start()
            if progress.step >= WARM:
                ends.append(time.perf_counter())
            if progress.step == WARM + self.steps:
                profiler.stop()

        runs = [Run(RANK, self.placement, self.config(seed)) for seed in range(count)]
        train_stack(self.base, [self.fact], runs, on_step=mark)
        field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        taken: dict[str, float] = defaultdict(float)
        for event in profiler.key_averages():
            taken[event.key[:120]] += getattr(event, field) / 1e3 / self.steps
        most = sorted(taken, key=lambda name: -taken[name])[:12]
        return {
            "step_ms": 1e3 * (ends[-1] - ends[0]) / self.steps,
            "busy_ms": sum(taken.values()),
            "most": {name: taken[name] for name in most},
        }


def in_parts(marks: Sequence[Mark]) -> list[list[Mark]]:
    """The steps of each part of a stack: a stack that runs out of memory goes on in parts, one after another."""
    parts: list[list[Mark]] = []
    for mark in marks:
        if parts and mark.adapters == parts[-1][-1].adapters and mark.step == parts[-1][-1].step + 1:
            parts[-1].append(mark)
        else:
            parts.append([mark])
    return parts


def _median_step(times: list[float]) -> float:
    """Seconds of a step, from the times at which steps ended; the first ones, which warm up, do not count."""
    between = [late - early for early, late in itertools.pairwise(times)]
    return statistics.median(between[WARM - 1 :] or between)


def product_rate(section: Section, base: Base) -> float:
    """FLOP/s of a product as wide as those of the model."""
    rows = 64 if section.small else 8192
    weight = base.model.model.layers[0].mlp.up_proj.weight
    x = torch.randn(rows, weight.shape[1], device=section.device, dtype=weight.dtype)
    return 2.0 * rows * weight.numel() / seconds_each(lambda: x @ weight.T, section, for_seconds=0.3)


def compared(bench: Bench, count: int, sides: Mapping[str, list[Mapping[str, Any]]], rate: float) -> Mapping[str, Any]:
    """`count` adapters on both sides: medians of the rounds."""
    ours, theirs = sides[f"stack {count}"], sides["peft"]
    stack = statistics.median(one["step_ms"] for one in ours)
    peft = statistics.median(one["step_ms"] for one in theirs)
    floor = 1e3 * flops_of_suffix(bench.base, bench.placement.first_layer, count * (bench.tokens + 4)) / rate
    return {
        "ratio": count * peft / stack,
        "stack_ms": stack,
        "peft_ms": peft,
        "floor_ms": floor,
        "stack_over_floor": stack / floor,
        "loss_difference": abs(ours[0]["loss_last"] / theirs[0]["loss_last"] - 1),
        "loss_first_difference": abs(ours[0]["loss_first"] / theirs[0]["loss_first"] - 1),
    }


def run(section: Section, model: str) -> None:
    base, rate = _model(section, model)
    if base is None:
        return
    for tokens in (12, 40) if section.small else (200, 2000):
        _one_length(section, Bench(section, base, tokens), rate)


def run_closer(section: Section, model: str) -> None:
    """Where the time of a step goes; and stacks whose upper layers are compiled, as by `--compile`, beside others."""
    base, _ = _model(section, model)
    if base is None:
        return
    short, long = (Bench(section, base, tokens) for tokens in ((12, 40) if section.small else (200, 2000)))
    section.case("profile, 200 tokens, stack 1", partial(short.profile, 1), takes=8)
    section.case("profile, 200 tokens, stack 16", partial(short.profile, 16), takes=8)
    section.case("profile, 2000 tokens, stack 4", partial(long.profile, 4), takes=8)
    for count in (1, 16):
        section.case(f"stack {count}", partial(short.stack, count), takes=5)
        section.case(f"stack {count} compiled", partial(short.stack, count, compiled=True), takes=30)


def _model(section: Section, model: str) -> tuple[Base | None, float]:
    """The model, if it can be made, and the rate of its products."""
    made: list[tuple[Base, float]] = []

    def make() -> Mapping[str, Any]:
        base = random_base(model, section)
        made.append((base, product_rate(section, base)))
        parameters = sum(p.numel() for p in base.model.parameters())
        where = str(placement_on(None, base.model))
        return {"parameters": parameters, "product_tflops": made[0][1] / 1e12, "placement": where}

    section.case("model", make)
    return made[0] if made else (None, 0.0)


def _one_length(section: Section, bench: Bench, rate: float) -> None:
    counts = (1, 2) if section.small else (1, 4, 16)
    works = {"peft": bench.peft} | {f"stack {count}": partial(bench.stack, count) for count in counts}
    sides: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for turn in range(1 if section.small else 2):
        for name, work in works.items():
            done = section.case(f"{bench.tokens} tokens, {name}, round {turn + 1}", work, takes=8)
            if done is not None:
                sides[name].append(done)
    for count in counts:
        if sides["peft"] and sides[f"stack {count}"]:
            section.case(f"{bench.tokens} tokens, K={count}", partial(compared, bench, count, sides, rate), takes=0)
