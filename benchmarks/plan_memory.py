"""Peak memory of a training step: K adapters as one memlaw stack, against PEFT, and against logits alone.

    python benchmarks/plan_memory.py [--only WORD]

Rank-8 LoRA on the MLP's output projection two thirds up, SFT on one random row, on random weights; float32 on the CPU.
What counts is resident memory beyond model and inputs, of one step and all that it takes: on memlaw's side caching and
the evaluations before and after it, on PEFT's side the optimizer.

- one: a single adapter in PEFT, full forward and full logits.
- batched: the same K adapters in PEFT as they would be beside one another, K copies of the row in one batch.
- logits: the logits of all target tokens of the K adapters, were they made: 4 K n V bytes and nothing else.

`predicted_mb` and `other_predicted_mb` count what a step has to hold at once. Of a decoder layer behind the adapter,
for each token: 12 d (the inputs of norms, attention's queries, keys, values and result) and 6 m (what the MLP's product
keeps, and its gradients). PEFT adds the input m and the output 2 d of the adapted module, and three times the logits:
themselves, their log softmax and its gradient. memlaw adds the cache, m + d, once and once for each adapter, and the
rows of logits that its head works on. Neither counts what an operation needs in passing, a fifth or so of the whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import torch
from common import peak_bytes, report, rounded
from sides import batch_of, peft_arm, random_base, random_fact, train

from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.losses.head_pass import Chunk
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

RANK = 8
SETTINGS = TrainConfig(steps=1)


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    vocabulary: int
    tokens: int
    adapters: int

    @property
    def case(self) -> str:
        return f"d{self.width} layers{self.layers} vocab{self.vocabulary} tokens{self.tokens} K{self.adapters}"

    @property
    def inner(self) -> int:
        """Width of the MLP."""
        return 3 * self.width

    @property
    def logits(self) -> int:
        """Numbers, of one adapter."""
        return self.tokens * self.vocabulary

    @property
    def behind(self) -> int:
        """Numbers that a step holds of the layers behind one adapter."""
        layers = self.layers - 1 - 2 * self.layers // 3
        return layers * self.tokens * (12 * self.width + 6 * self.inner)

    def predicted(self) -> int:
        """Bytes of a stack's step."""
        cached = self.tokens * (self.inner + self.width)
        rows = min(Chunk.for_device(torch.device("cpu"), self.vocabulary).rows, self.adapters * self.tokens)
        return 4 * (cached + self.adapters * (cached + self.behind) + rows * self.vocabulary)

    def predicted_peft(self, copies: int) -> int:
        """Bytes of a step in PEFT."""
        return 4 * copies * (self.behind + self.tokens * (self.inner + 2 * self.width) + 3 * self.logits)


SMALL = Shape(64, 3, 512, 16, 2)
"""The first run of every process, which loads the libraries."""

AGAINST_PEFT = (Shape(128, 6, 1024, 512, 16), Shape(256, 6, 32_768, 512, 8))
GROWING = (
    *(Shape(128, 6, 32_768, tokens, 4) for tokens in (256, 1024, 4096)),
    *(Shape(128, 6, vocabulary, 1024, 4) for vocabulary in (8192, 131_072)),
)


def stacked(shape: Shape) -> Callable[[], object]:
    base = random_base(shape.width, shape.layers, shape.vocabulary)
    fact, placement = random_fact(shape.tokens, shape.vocabulary), placement_on(None, base.model)
    return lambda: train_stack(base, [fact], [Run(RANK, placement, SETTINGS)] * shape.adapters)


def in_peft(shape: Shape, copies: int) -> Callable[[], object]:
    base = random_base(shape.width, shape.layers, shape.vocabulary)
    batch, placement = (
        batch_of([random_fact(shape.tokens, shape.vocabulary)] * copies),
        placement_on(None, base.model),
    )

    def work() -> None:
        with peft_arm(base.model, placement, RANK, SETTINGS) as arm:
            train(arm, SETTINGS, repeat(batch), steps=1)

    return work


def warmed(side: Callable[..., Callable[[], object]], shape: Shape, *more: int) -> Callable[[], object]:
    side(SMALL, *more)()
    return side(shape, *more)


def line(shape: Shape, other: str, ours: int, theirs: int, other_predicted: int) -> None:
    report(
        "plan_memory", f"{shape.case} vs {other}", theirs / ours,
        memlaw_mb=rounded(ours / 1e6), predicted_mb=rounded(shape.predicted() / 1e6),
        other_mb=rounded(theirs / 1e6), other_predicted_mb=rounded(other_predicted / 1e6),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only the cases whose name has this word")
    only = parser.parse_args().only
    for shape in AGAINST_PEFT + GROWING:
        others = {"one": 1, "batched": shape.adapters} if shape in AGAINST_PEFT else {"logits": 0}
        wanted = {name: copies for name, copies in others.items() if only in f"{shape.case} vs {name}"}
        if not wanted:
            continue
        ours = peak_bytes(partial(warmed, stacked), shape)
        for name, copies in wanted.items():
            logits = 4 * shape.adapters * shape.logits
            theirs = peak_bytes(partial(warmed, in_peft), shape, copies) if copies else logits
            line(shape, name, ours, theirs, shape.predicted_peft(copies) if copies else logits)


if __name__ == "__main__":
    main()
