"""Peak memory of a training with `--evict-prefix`, in the shape of Qwen3-8B: only what trains is on the GPU.

The model is made on the GPU as a whole before its layers are evicted, so `made_gib` is not part of the peak.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from sides import random_fact

from gpu.models import random_base
from gpu.section import Peak, Section
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import Execution, TrainConfig
from memlaw.model.base import Base
from memlaw.model.offload import evicted
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

GOAL_GB = 9.0
STEPS, RANK = 5, 8


def trained(section: Section, base: Base, tokens: int, protect: float) -> Mapping[str, Any]:
    """Peak while one adapter trains for a few steps, and how long leaving the GPU and the steps take."""
    placement = placement_on(None, base.model)
    vocabulary = base.model.config.vocab_size
    neutral = torch.randint(vocabulary, (8, 16) if section.small else (128, 65)) if protect else None
    config = TrainConfig(steps=STEPS, learning_rate=1e-3, protect=protect)
    run = Run(RANK, placement, config, neutral=neutral)
    ends: list[float] = []
    begun = time.perf_counter()
    with evicted(base, placement.first_layer, wanted=section.device == "cuda"):
        left = time.perf_counter()
        peak = Peak(section.device)
        (adapter,) = train_stack(
            base, [random_fact(tokens, vocabulary)], [run], execution=Execution(evict_prefix=True),
            on_step=lambda _progress: ends.append(time.perf_counter()),
        )  # fmt: skip
        found = peak.read()
    if found:
        gigabytes = found["peak_gib"] * 2**30 / 1e9
        found |= {"peak_gb": gigabytes, "below_goal": gigabytes < GOAL_GB, "resident_gib": peak.before}
    return found | {
        "evicting_seconds": left - begun,
        "before_first_step_seconds": ends[0] - left,
        "step_ms": 1e3 * (ends[-1] - ends[0]) / (len(ends) - 1),
        "loss_first": adapter.loss_init,
        "loss_last": adapter.loss_final,
    }


def run(section: Section) -> None:
    made: list[Base] = []

    def make() -> Mapping[str, Any]:
        peak = Peak(section.device)
        made.append(random_base("qwen3-8b", section))
        return {"made_gib": peak.read().get("peak_gib", 0.0)}

    section.case("model", make)
    for base in made:
        for tokens, protect in ((12, 0.0), (12, 10.0)) if section.small else ((200, 0.0), (2000, 0.0), (200, 3000.0)):
            name = f"{tokens} tokens{', protected' if protect else ''}"
            section.case(name, partial(trained, section, base, tokens, protect), takes=25)
