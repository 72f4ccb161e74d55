from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from memlaw.adapter.info import FORMAT, INFO, WEIGHTS
from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.canonical import to_dict
from memlaw.core.config import TrainConfig
from memlaw.core.side_effects import SideEffects


def trained(placement: Placement, rank: int = 3, scale: float = 1.5) -> AdapterStack:
    """An adapter with weights as training leaves them: both halves away from zero."""
    stack = AdapterStack.start(placement.sites, [(rank, TrainConfig(scale=scale))], device="cpu", dtype="float32")
    stream = torch.Generator().manual_seed(0)
    return AdapterStack(
        stack.sites, stack.ranks, stack.scale,
        [(a, torch.randn(b.shape, generator=stream)) for a, b in stack.pairs],
    )  # fmt: skip


def recorded(directory: Path, *, rank: int, side_effects: SideEffects | None = None, **details: Any) -> None:
    """What is read of an adapter without its weights."""
    directory.mkdir(parents=True)
    (directory / WEIGHTS).write_bytes(b"")
    info = {"format": FORMAT, "base": "a/base", "base_fingerprint": "0" * 64, "placement": "down_proj@4", "rank": rank,
            "scale": 4.0, "weights_sha256": "1" * 64, "records": 12, **details}  # fmt: skip
    if side_effects is not None:
        info["side_effects"] = to_dict(side_effects)
    (directory / INFO).write_text(json.dumps(info))
