"""The demo's whole grid, every cell and all its steps: memlaw's probe against sequential PEFT.

    python benchmarks/demo_grid.py [--steps 10 --out DIR]

memlaw's side is `sweep.probe` as `memlaw demo` calls it, timed whole: caching, training, measuring, decoding, journal.
PEFT's side trains one cell after another with the full forward and AdamW, for as many steps as that takes to store as
much (`USUAL`). It is timed for `--steps` steps of each cell, after two that are not counted, and multiplied by the
cell's steps (`extrapolated`); it measures nothing. Its turns are taken before each of memlaw's packs, so that a machine
whose speed changes serves both sides alike. Loading the model counts on neither side. One thread, process CPU time.

What PEFT would store is what memlaw's engine stores with the same settings: its cells are trained too, which gives
`engine`, the factor without the other optimizer, and their losses are held to PEFT's. `gain` is by how many nats dL is
larger with memlaw's settings than with PEFT's: the mean over all cells and the least. `--out` keeps the four probes,
for `memlaw fit`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from memlaw.sweep.journal import Journal
from memlaw.sweep.probe import probe
from memlaw.sweep.scheduler import ProbeProgress, ProbeRun
from memlaw.training.result import StackProgress
from memlaw.training.rows import row_order

WARM = 2

USUAL = {
    "random tokens": replace(RANDOM, optimizer="adamw", learning_rate=0.02, steps=600),
    "phone book": replace(PHONEBOOK, optimizer="adamw", learning_rate=0.02, steps=900, batch_size=10),
}
"""The cells of the demo as AdamW trains them: what the demo did itself before it had another optimizer."""


@dataclass
class Sides:
    """What all took for one grid, in seconds of process CPU time, and how far apart their losses were."""

    memlaw: float = 0.0
    engine: float = 0.0
    """memlaw with PEFT's settings."""
    peft: float = 0.0
    cells: int = 0
    difference: float = 0.0
    """Largest relative difference of the loss of a step, between memlaw and PEFT with the same settings."""
    gains: list[float] = field(default_factory=list)
    """dL of memlaw's cells beyond that of PEFT's, nats."""


class Race:
    """Both sides on one grid."""

    def __init__(self, base: Base, facts: MemorySet, usual: ProbeConfig, steps: int, out: Path) -> None:
        self.base, self.facts, self.usual, self.steps, self.out = base, facts, usual, steps, out
        self.encoded = encode(facts, base.tokenizer, context=base.context)
        self.model = copy.deepcopy(base.model)  # PEFT replaces modules of the model that it wraps
        self.sides = Sides()
        self.expected: list[list[float]] = []
        """PEFT's loss at each step of each pack, averaged over its cells."""

    def run(self, config: ProbeConfig) -> Sides:
        sides = self.sides
        sides.memlaw, ours = self._timed(config, self._peft)
        sides.engine, theirs = self._timed(self.usual, self._compare)
        if not len(ours) == len(theirs) == sides.cells:
            raise SystemExit(f"memlaw finished {len(ours)} and {len(theirs)} cells, PEFT {sides.cells}.")
        if sides.difference > 1e-3:
            raise SystemExit(f"The two sides do not train the same: losses differ by {sides.difference:.1e}.")
        sides.gains = [ours[cell] - theirs[cell] for cell in theirs]
        return sides

    def _timed(
        self, config: ProbeConfig, between: Callable[[ProbeProgress], None]
    ) -> tuple[float, dict[tuple[int, int], float]]:
        """Seconds of a probe without those of `between`, and dL by rank and length."""
        elsewhere = 0.0

        def on_progress(progress: ProbeProgress) -> None:
            nonlocal elsewhere
            begun = time.process_time()
            between(progress)
            elsewhere += time.process_time() - begun

        begun = time.process_time()
        out = self.out / config.optimizer
        probe(self.base, self.facts, config, out, ProbeRun(on_progress=on_progress))
        seconds = time.process_time() - begun - elsewhere
        found = Journal(out).results()
        return seconds, {(it.cell.rank, it.cell.length): it.delta_loss for it in found if it.delta_loss is not None}

    def _peft(self, progress: ProbeProgress) -> None:
        if progress.news is not None:
            return
        assert progress.packs == len(self.usual.lengths), "a pack of the demo is all the ranks of one length"
        facts = take(self.encoded, self.usual.lengths[progress.pack - 1])
        self.expected.append(self._peft_cells(facts, self.usual.train(self.usual.methods[0], self.usual.seeds[0])))

    def _peft_cells(self, facts: Sequence[EncodedFact], config: TrainConfig) -> list[float]:
        """Train one cell after another for a few steps, add what all their steps would take, and return their loss."""
        losses = []
        for rank in self.usual.ranks:
            with peft_arm(self.model, placement_on(None, self.model), rank, config) as arm:
                taken = train(arm, config, batches(facts, config), WARM + self.steps)
            self.sides.peft += sum(taken.seconds[WARM:]) / self.steps * config.steps
            self.sides.cells += 1
            losses.append(taken.losses)
        return [sum(step) / len(step) for step in zip(*losses, strict=True)]

    def _compare(self, progress: ProbeProgress) -> None:
        expected = self.expected[progress.pack - 1]
        if isinstance(progress.news, StackProgress) and progress.news.step <= len(expected):
            apart = abs(progress.news.loss / expected[progress.news.step - 1] - 1)
            self.sides.difference = max(self.sides.difference, apart)


def batches(facts: Sequence[EncodedFact], config: TrainConfig) -> Iterator[Batch]:
    for rows in row_order(len(facts), config):
        yield batch_of(facts[row] for row in rows.tolist())


def whole(grids: Sequence[Sides]) -> Sides:
    return Sides(
        memlaw=sum(sides.memlaw for sides in grids),
        engine=sum(sides.engine for sides in grids),
        peft=sum(sides.peft for sides in grids),
        cells=sum(sides.cells for sides in grids),
        difference=max(sides.difference for sides in grids),
        gains=[gain for sides in grids for gain in sides.gains],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of each cell for which PEFT is timed")
    parser.add_argument("--out", type=Path, help="empty directory for the probes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = load()
    noise = random_tokens(tokens=max(RANDOM.lengths), seed=0, ids=reachable_ids(base))
    grids = {"random tokens": (noise, RANDOM), "phone book": (published_phonebook(), PHONEBOOK)}
    with tempfile.TemporaryDirectory() as temporary:
        out = given.out or Path(temporary)
        found = {
            name: Race(base, facts, USUAL[name], given.steps, out / name.replace(" ", "_")).run(config)
            for name, (facts, config) in grids.items()
        }
    for name, sides in {**found, "whole grid": whole(list(found.values()))}.items():
        report(
            "demo_grid", name, sides.peft / sides.memlaw, cells=sides.cells,
            memlaw_s=rounded(sides.memlaw), engine_s=rounded(sides.engine), peft_s=rounded(sides.peft),
            engine=rounded(sides.peft / sides.engine), extrapolated=True, steps_timed=given.steps,
            loss_difference=rounded(sides.difference),
            gain_mean=rounded(statistics.fmean(sides.gains)), gain_least=rounded(min(sides.gains)),
        )  # fmt: skip


if __name__ == "__main__":
    main()
