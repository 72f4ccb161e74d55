"""One of two processes that train together; tests/integrations/test_transformers.py runs it and compares results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from helpers import transformers_runs as single
from helpers import trl_runs as in_trl
from helpers.trainers import Gradients, trainer
from memlaw.core.errors import ConfigError
from memlaw.integrations.recall import RecallCallback
from memlaw.integrations.transformers import MemFTLoss, memft
from memlaw.integrations.trl import memft as memft_in_trl

OUT = Path(sys.argv[1])


def step(name: str, accumulation: int) -> tuple[Any, list[float]]:
    seen = Gradients()
    size = len(single.ROWS) // (2 * accumulation)
    trainer(OUT, accumulation, loss=MemFTLoss(**single.SETTINGS[name]), callbacks=[seen],
            per_device_train_batch_size=size, ddp_backend="gloo").train()  # fmt: skip
    return seen.steps, seen.losses


def unaveraged() -> str:
    built = trainer(OUT, 2, loss=MemFTLoss(**single.SETTINGS["ot"]), per_device_train_batch_size=2,
                    average_tokens_across_devices=False)  # fmt: skip
    try:
        built.train()
    except ConfigError as refused:
        return str(refused)
    return "not refused"


results: dict[Any, Any] = {
    (name, accumulation): step(name, accumulation)
    for name in ("ot", "fallback, one token", "fallback, none")
    for accumulation in (1, 2, 4)
}

windows = single.run_sw(OUT, 2, per_device_train_batch_size=2, train_sampling_strategy="random")
results["sw", 2] = windows.steps, windows.losses

seen = Gradients()
memft_in_trl(in_trl.sft(OUT, 2, seen=seen, per_device_train_batch_size=2), **in_trl.SETTINGS["ot"]).train()
results["trl"] = seen.steps, seen.losses

results["unaveraged"] = unaveraged()

try:
    memft(trainer(OUT, average_tokens_across_devices=False))
except ConfigError as refused:
    results["unaveraged"] += str(refused)

moved = memft(single.by_muon(OUT, 2, per_device_train_batch_size=2), optimizer="muon")
moved.train()
results["muon"] = {name: p.detach() for name, p in moved.model.named_parameters() if p.requires_grad}

callback = RecallCallback(single.FACTS, every=5)
learning = single.learning(OUT, [callback], per_device_train_batch_size=1)
learning.train()
assert callback.report is not None
results["recall"] = callback.report.certified, learning.state.global_step

torch.save(results, OUT / f"gradients-{dist.get_rank()}.pt")
dist.destroy_process_group()
