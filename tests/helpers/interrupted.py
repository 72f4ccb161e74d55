from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from helpers import tiny
from helpers.runs import runs_at
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.training.checkpoint import Checkpoint
from memlaw.training.result import StackProgress, Trained
from memlaw.training.stack import train_stack

FACTS = tiny.facts([(5, 4), (3, 7), (6, 2), (4, 4), (4, 5)])

PLAIN = TrainConfig(steps=14, learning_rate=2e-2, batch_size=2)

RUNS = {
    "sft": [(1, PLAIN), (4, replace(PLAIN, steps=6, seed=1)), (2, replace(PLAIN, weight_decay=0.1))],
    "ot": [(3, replace(PLAIN, method="ot", until="recalled", learning_rate=5e-2)), (4, replace(PLAIN, method="ot"))],
    "sw": [(3, replace(PLAIN, method="sw")), (4, replace(PLAIN, method="sw", seed=7)), (2, PLAIN)],
    "curriculum": [(3, replace(PLAIN, method="curriculum")), (2, replace(PLAIN, rule="fallback", method="ot"))],
    "average": [
        (3, replace(PLAIN, method="ot", schedule="share", average=8, anneal=0.25)),
        (2, replace(PLAIN, method="ot", until="recalled", schedule="share", learning_rate=5e-2, average=2)),
        (2, PLAIN),
    ],
    "muon": [
        (1, replace(PLAIN, method="ot", optimizer="muon", until="recalled", schedule="share", average=8, anneal=0.25)),
        (4, replace(PLAIN, method="ot", optimizer="muon", rule="fallback", seed=5)),
        (2, replace(PLAIN, optimizer="muon", learning_rate=1e38, clip=0.0)),
    ],
    "dropout": [(3, replace(PLAIN, dropout=0.1)), (2, replace(PLAIN, dropout=0.5, seed=3))],
    "served": [(3, replace(PLAIN, method=name, served_as=("q8_0", "q4_0"))) for name in ("ot", "sw")],
    "diverging": [(2, replace(PLAIN, learning_rate=1e38, clip=0.0)), (2, PLAIN)],
}


class InterruptedTrainingError(Exception):
    pass


def stop_at(step: int) -> Callable[[StackProgress], None]:
    def on_step(progress: StackProgress) -> None:
        if progress.step == step:
            raise InterruptedTrainingError

    return on_step


def train(name: str, path: Path | None = None, *, stop: int | None = None, **changes: object) -> list[Trained]:
    base = tiny.base(**changes)
    placement = placement_on("down_proj@1+3", base.model)
    checkpoint = None if path is None else Checkpoint(path, minutes=0)
    on_step = None if stop is None else stop_at(stop)
    return train_stack(base, FACTS, runs_at(placement, RUNS[name]), checkpoint=checkpoint, on_step=on_step)
