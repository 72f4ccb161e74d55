"""The demo's whole grid, every cell and all its steps: memlaw's probe against sequential PEFT.

    python benchmarks/demo_grid.py [--steps 10]

memlaw's side is `sweep.probe` as `memlaw demo` calls it, timed whole: caching, training, measuring, decoding, journal.
PEFT's side trains one cell after another with the full forward, on the same batches in the same order. It is timed for
`--steps` steps of each cell, after two that are not counted, and multiplied by the cell's steps (`extrapolated`); it
measures nothing. Its turns are taken before each of memlaw's packs, so that a machine whose speed changes serves both
sides alike, and its losses are held to memlaw's. Loading the model counts on neither side. One thread, process CPU
time.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from common import report, rounded
from sides import Batch, batch_of, peft_arm, train

from memlaw.adapter.on_model import placement_on
from memlaw.cli.demo_chain import PHONEBOOK, RANDOM, published_phonebook
from memlaw.core.config import TrainConfig
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.data import encode, take
from memlaw.data.tasks import random_tokens
from memlaw.model.base import Base, load
from memlaw.model.reach import reachable_ids
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import ProbeProgress, ProbeRun
from memlaw.training.result import StackProgress
from memlaw.training.rows import row_order

WARM = 2


@dataclass
class Sides:
    """What both sides took for one grid, in seconds of process CPU time, and how far apart their losses were."""

    memlaw: float = 0.0
    peft: float = 0.0
    cells: int = 0
    difference: float = 0.0
    expected: list[float] = field(default_factory=list)
    """PEFT's loss at each step of the pack in training, averaged over its cells."""


def timed(base: Base, facts: MemorySet, config: ProbeConfig, steps: int) -> Sides:
    sides = Sides()
    lengths = iter(config.lengths)
    encoded = encode(facts, base.tokenizer, context=base.context)
    training = config.train(config.methods[0], config.seeds[0])
    model = copy.deepcopy(base.model)  # PEFT replaces modules of the model that it wraps
    elsewhere = 0.0

    def on_progress(progress: ProbeProgress) -> None:
        nonlocal elsewhere
        begun = time.process_time()
        if progress.news is None:
            assert progress.packs == len(config.lengths), "a pack of the demo is all the ranks of one length"
            peft_cells(sides, model, take(encoded, next(lengths)), config.ranks, training, steps)
        elif isinstance(progress.news, StackProgress) and progress.news.step <= len(sides.expected):
            other = sides.expected[progress.news.step - 1]
            sides.difference = max(sides.difference, abs(progress.news.loss / other - 1))
        elsewhere += time.process_time() - begun

    begun = time.process_time()
    with tempfile.TemporaryDirectory() as out:
        summary = probe(base, facts, config, out, ProbeRun(on_progress=on_progress))
    sides.memlaw = time.process_time() - begun - elsewhere
    if summary.finished != sides.cells:
        raise SystemExit(f"memlaw finished {summary.finished} cells, PEFT {sides.cells}.")
    if sides.difference > 1e-3:
        raise SystemExit(f"The two sides do not train the same: losses differ by {sides.difference:.1e}.")
    return sides


def peft_cells(
    sides: Sides, model: torch.nn.Module, facts: Sequence[EncodedFact], ranks: Sequence[int], config: TrainConfig,
    steps: int,
) -> None:  # fmt: skip
    """Train one cell after another for a few steps, and add what all their steps would take."""
    losses = []
    for rank in ranks:
        with peft_arm(model, placement_on(None, model), rank, config) as arm:
            taken = train(arm, config, batches(facts, config), WARM + steps)
        sides.peft += sum(taken.seconds[WARM:]) / steps * config.steps
        sides.cells += 1
        losses.append(taken.losses)
    sides.expected = [sum(step) / len(step) for step in zip(*losses, strict=True)]


def batches(facts: Sequence[EncodedFact], config: TrainConfig) -> Iterator[Batch]:
    for rows in row_order(len(facts), config):
        yield batch_of(facts[row] for row in rows.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of each cell for which PEFT is timed")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    base = load()
    noise = random_tokens(tokens=max(RANDOM.lengths), seed=0, ids=reachable_ids(base))
    grids = {"random tokens": (noise, RANDOM), "phone book": (published_phonebook(), PHONEBOOK)}
    found = {name: timed(base, facts, config, steps) for name, (facts, config) in grids.items()}
    whole = Sides(
        memlaw=sum(sides.memlaw for sides in found.values()),
        peft=sum(sides.peft for sides in found.values()),
        cells=sum(sides.cells for sides in found.values()),
        difference=max(sides.difference for sides in found.values()),
    )
    for name, sides in {**found, "whole grid": whole}.items():
        report(
            "demo_grid", name, sides.peft / sides.memlaw, cells=sides.cells,
            memlaw_s=rounded(sides.memlaw), peft_s=rounded(sides.peft), extrapolated=True, steps_timed=steps,
            loss_difference=rounded(sides.difference),
        )  # fmt: skip


if __name__ == "__main__":
    main()
