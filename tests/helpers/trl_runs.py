from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import trl

from helpers import tiny, trainers
from helpers.trainers import Gradients

ROWS = trainers.rows()
HALF = trainers.middle_threshold(ROWS)
TOP = math.exp(-sum(sorted(trainers.token_losses(ROWS))[-2:]) / 2)
"""A probability that all tokens but one reach."""

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "ot": {"method": "ot", "threshold": HALF},
    "fallback, one token": {"method": "ot", "threshold": TOP, "rule": "fallback"},
    "position": {"method": "ot", "threshold": HALF, "position": 2.0},
}


def sft(out: Path, accumulation: int = 1, *, data: Any = None, seen: Gradients | None = None, kind: Any = None,
        model: Any = None, processing_class: Any = None, **changes: Any) -> Any:  # fmt: skip
    """An SFTTrainer in single precision, the only one that its fused head supports."""
    settings = {"shuffle_dataset": False, "max_length": 128, "bf16": False, "gradient_checkpointing": False}
    return (kind or trl.SFTTrainer)(
        model=model or trainers.adapted(),
        args=trl.SFTConfig(**trainers.arguments(out, accumulation, **{**settings, **changes})),
        train_dataset=datasets.Dataset.from_list(ROWS if data is None else data),
        processing_class=processing_class or tiny.tokenizer(),
        callbacks=[seen] if seen else None,
    )
