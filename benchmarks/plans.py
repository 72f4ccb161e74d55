"""Are plans right? Plans made from small cells alone, against the smallest rank that truly works on unseen memory sets.

    python benchmarks/plans.py [--out DIR]

Three kinds of facts: random tokens, a phone book, hexadecimal keys. For each a probe of one set, at lengths up to 44
target tokens; then seven other sets of the kind, four to six times as long, each planned with the law of that probe and
trained, at every rank of a ladder, as the cells were (SFT, 600 steps of AdamW). One JSON line a set: the rank planned,
its 95% interval, and the smallest rank of the ladder at which every record came back verbatim; one line a kind and one
for all: how often the interval holds that rank, and how often the planned rank is within a factor of 1.5 of it. All
probes go on where they were interrupted if --out is given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import rounded

from memlaw.adapter.on_model import placement_on
from memlaw.core.facts import Fact, MemorySet
from memlaw.data import encode, take
from memlaw.data.tasks import phonebook, random_tokens
from memlaw.model.base import Base, load
from memlaw.model.reach import reachable_ids
from memlaw.planning.for_facts import plan_for
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.laws import law_chooser, probe_results
from memlaw.sweep.probe import probe

STEPS, FACTOR = 600, 1.5
ADAMW = {"optimizer": "adamw", "steps": STEPS}
SMALL = ProbeConfig(ranks=(1, 2, 3, 4, 6, 8, 12, 16), lengths=(11, 22, 33, 44), seeds=(0, 1), **ADAMW)
LADDERS = {"random": (*range(6, 15), 16, 18, 20), "phonebook": range(2, 11), "keys": range(2, 11)}
"""Ranks tried on every set of a kind."""
SETS = {192: (1, 2, 3, 4), 256: (1, 2, 3)}
"""Target tokens -> seeds of the sets that are planned for."""
Kind = Callable[[int, int], MemorySet]
"""At least so many target tokens, of this seed."""


def kinds(base: Base) -> dict[str, Kind]:
    ids = reachable_ids(base)

    def keys(tokens: int, seed: int) -> MemorySet:
        random = np.random.default_rng([1, seed])
        codes = ["".join(random.choice(list("0123456789abcdef"), 8)) for _ in range(tokens // 8 + 1)]
        facts = (Fact(f"Key of device {1000 + 37 * at}:", code, str(at + 1)) for at, code in enumerate(codes))
        return MemorySet(tuple(facts), True, f"hexadecimal keys, seed {seed}")

    return {
        "random": lambda tokens, seed: random_tokens(tokens, seed, ids),
        "phonebook": lambda tokens, seed: phonebook(tokens + 11, seed, base.tokenizer),
        "keys": keys,
    }


@dataclass(frozen=True)
class Outcome:
    """One set: what was planned for it, and what works."""

    planned: int
    low: int
    high: float
    works: float

    @property
    def inside(self) -> bool:
        return self.low <= self.works <= self.high

    @property
    def close(self) -> bool:
        return max(self.planned / self.works, self.works / self.planned) <= FACTOR


def outcome(base: Base, facts: MemorySet, length: int, ladder: Sequence[int], law: Path, out: Path) -> Outcome:
    """The lowest rank of the ladder must fail, or a lower one might do: then nothing can be said of this set."""
    probe(base, facts, ProbeConfig(ranks=ladder, lengths=(length,), seeds=(0,), **ADAMW), out)
    works = min((r.cell.rank for r in probe_results(out) if r.acc_em == 1), default=float("inf"))
    assert min(ladder) < works < float("inf"), f"{out}: the ladder is too short"
    encoded = take(encode(facts, base.tokenizer, context=base.context), length)
    plan = plan_for(base, encoded, placement_on(None, base.model), law_chooser(law))
    none = 10**6
    low, high = plan.rank.low or none, plan.rank.high or none
    return Outcome(plan.rank.value or none, low, high, works)


def lines(name: str, outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {
        "benchmark": "plans",
        "case": name,
        "sets": len(outcomes),
        "interval_holds": rounded(float(np.mean([o.inside for o in outcomes]))),
        "within_1.5": rounded(float(np.mean([o.close for o in outcomes]))),
        "median_planned_over_works": rounded(float(np.median([o.planned / o.works for o in outcomes]))),
        "median_high_over_low": rounded(float(np.median([o.high / o.low for o in outcomes]))),
    }


def run(base: Base, out: Path) -> Iterator[dict[str, object]]:
    everything: list[Outcome] = []
    for kind, made in kinds(base).items():
        law = out / f"{kind}-law"
        probe(base, made(64, 0), SMALL, law)
        found = []
        for length, seeds in SETS.items():
            for seed in seeds:
                one = outcome(base, made(length, seed), length, LADDERS[kind], law, out / f"{kind}-{length}-{seed}")
                found.append(one)
                yield {
                    "benchmark": "plans", "case": f"{kind} {length} tokens set {seed}", "planned": one.planned,
                    "low": one.low, "high": one.high, "works": one.works, "holds": one.inside, "close": one.close,
                }  # fmt: skip
        yield lines(kind, found)
        everything += found
    yield lines("all", everything)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the probes are kept; a temporary directory otherwise")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for line in run(load(), out or Path(temporary)):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
