from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from helpers import tiny, trainers
from helpers.trainers import Gradients, trainer
from memlaw.core.facts import Fact, MemorySet
from memlaw.integrations.transformers import MemFTLoss, memft
from memlaw.losses import IGNORED

ROWS = trainers.rows()
HALF = trainers.middle_threshold(ROWS)
LOSSES = trainers.token_losses(ROWS)
TOP = math.exp(-sum(sorted(LOSSES)[-2:]) / 2)
"""A probability that all tokens but one reach."""

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "ot": {"method": "ot", "threshold": HALF},
    "ot, all below": {"method": "ot", "threshold": 0.999},
    "ot, one token": {"method": "ot", "threshold": TOP},
    "fallback, half": {"method": "ot", "threshold": HALF, "rule": "fallback"},
    "fallback, one token": {"method": "ot", "threshold": TOP, "rule": "fallback"},
    "fallback, none": {"method": "ot", "threshold": math.exp(-1.01 * max(LOSSES)), "rule": "fallback"},
}

LONG = trainers.rows(trainers.LONG)


def run_sw(out: Path, accumulation: int = 1, *, steps: int = 5, method: str = "sw", resume: Any = None,
           **changes: Any) -> Gradients:  # fmt: skip
    seen = Gradients()
    built = trainer(out, accumulation, callbacks=[seen], data=LONG, max_steps=steps, learning_rate=0.0, **changes)
    memft(built, method)
    built.train(resume_from_checkpoint=resume)
    return seen


def by_muon(out: Path, accumulation: int = 1, **changes: Any) -> Any:
    """A trainer of a few steps at a rate for Muon."""
    return trainer(out, accumulation, max_steps=3, num_train_epochs=3, learning_rate=2e-2, **changes)


FACTS = MemorySet(tuple(Fact(f"{name}:", target, name) for name, target in (("a", "Xq7"), ("b", "k9!Z"))), True, "test")


def fact_rows(tokenizer: Any = None) -> list[trainers.Row]:
    from memlaw.data import encode

    encoded = encode(FACTS, tokenizer or tiny.tokenizer(), context=None)
    return [{"input_ids": list(f.ids), "labels": [IGNORED] * f.prompt_length + list(f.target)} for f in encoded]


def learning(out: Path, callbacks: Any = (), tokenizer: Any = None, **changes: Any) -> Any:
    settings = {"max_steps": 200, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "logging_steps": 1000}
    model = trainers.adapted().float()
    built = trainer(out, model=model, data=fact_rows(tokenizer), loss=MemFTLoss("ot", margin=0.1), callbacks=callbacks,
                    **{**settings, **changes})  # fmt: skip
    built.processing_class = built.callback_handler.processing_class = tokenizer or tiny.tokenizer()
    return built
