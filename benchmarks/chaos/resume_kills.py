"""SIGKILL trainings and resume them: the final weights equal those of an undisturbed training bit for bit.

    python benchmarks/chaos/resume_kills.py [--points 200]

Three methods in two precisions, on the bundled base, with a checkpoint after every step. Kills are spread evenly over
the steps of a training and its calls of fsync, rename and replace. One JSON line per method and precision.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.data import encode
from memlaw.data.tasks import phonebook
from memlaw.model.base import Base, load
from memlaw.training.checkpoint import Checkpoint
from memlaw.training.result import Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

METHODS, PRECISIONS, RANKS, STEPS = ("sft", "ot", "sw"), ("float32", "bfloat16"), (1, 4), 14

CALLS = ("fsync", "rename", "replace")


def train(
    base: Base, facts: tuple[EncodedFact, ...], method: str, path: Path, event: Callable[[], None]
) -> list[Trained]:
    """A small stack; `event` is called before every call of CALLS and after every step."""
    placement = placement_on(None, base.model)
    runs = [Run(rank, placement, TrainConfig(method=method, steps=STEPS, batch_size=2, seed=rank)) for rank in RANKS]

    def counted(call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        event()
        return call(*arguments, **more)

    with mock.patch.multiple(os, **{name: partial(counted, getattr(os, name)) for name in CALLS}):
        return train_stack(base, facts, runs, checkpoint=Checkpoint(path, minutes=0), on_step=lambda _: event())


def killed_at(point: int, run: Callable[[Callable[[], None]], object]) -> bool:
    """Run it in a child process that kills itself at that event; whether it did."""
    child = os.fork()
    if child == 0:
        seen = 0

        def event() -> None:
            nonlocal seen
            seen += 1
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)

        run(event)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def same(ours: list[Trained], theirs: list[Trained]) -> bool:
    pairs = [
        (a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x.stack.tensors, y.stack.tensors, strict=True)
    ]
    return all(torch.equal(a, b) for a, b in pairs) and [t.loss_final for t in ours] == [t.loss_final for t in theirs]


def case(base: Base, method: str, points: int) -> dict[str, object]:
    facts = encode(phonebook(44, 0, base.tokenizer), base.tokenizer, context=base.context)
    begun, events = time.monotonic(), 0

    def count() -> None:
        nonlocal events
        events += 1

    with tempfile.TemporaryDirectory() as folder:
        undisturbed = train(base, facts, method, Path(folder) / "C", count)
    chosen = sorted({1 + round(at * (events - 1) / max(points - 1, 1)) for at in range(points)})
    kills = identical = 0
    for turn in range(points):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "C"
            kills += killed_at(chosen[turn % len(chosen)], partial(train, base, facts, method, path))
            identical += same(train(base, facts, method, path, lambda: None), undisturbed)
    return {
        "benchmark": "chaos", "case": f"resume, {method}, {base.dtype}", "kills": kills, "points": len(chosen),
        "events": events, "identical": identical, "seconds": round(time.monotonic() - begun),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200)
    points = parser.parse_args().points
    torch.set_num_threads(1)
    for precision in PRECISIONS:
        base = load(dtype=precision)
        for method in METHODS:
            print(json.dumps(case(base, method, points)), flush=True)


if __name__ == "__main__":
    main()
