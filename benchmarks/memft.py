"""What MemFT changes on the bundled base: every method at equal steps, over ranks, tasks and seeds.

    python benchmarks/memft.py [--out DIR] [--only records|random|rule] [--recipe adamw|default] [--arms sft,...]
                               [--seeds 0,1,2]

- records: the first 50 of the published PB1000, batches of 10; share of records and of tokens that greedy decoding
  gets right, and the share certified.
- random: one target of 256 random tokens; share of tokens, and of ordered tokens.
- rule: f(x, y) = 3x + 5y + 7 from 500 pairs; memory is the share of these that come back, generalization that of 200
  unseen pairs.

One JSON line for each task, method and rank: means over the seeds with their standard deviation; and one for each
task and method: the mean difference to SFT at the same ranks and seeds with its 95% interval (bootstrap over ranks and
seeds). Both probes go on where they were interrupted if --out is given. With --recipe default the optimizer, schedule,
average and annealed threshold are those of `memlaw train`, with the steps and batches left as they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import rounded

from memlaw.adapter.on_model import placement_on
from memlaw.cli.demo_chain import published_phonebook
from memlaw.core.config import UNTIL_RECALLED, TrainConfig
from memlaw.core.facts import MemorySet
from memlaw.data import encode
from memlaw.data.tasks import linear_rule, random_tokens
from memlaw.diagnosis.measure import measure
from memlaw.model.base import Base, load
from memlaw.model.reach import reachable_ids
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.journal import Journal
from memlaw.sweep.probe import probe
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

RULE_RANKS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Way:
    """How all arms are optimised, and the ranks around the transition: below it none recalls, above it all of them."""

    settings: Mapping[str, Any]
    ranks: Mapping[str, Sequence[int]]
    seeds: Sequence[int] = (0, 1, 2)


_DEFAULT = ("optimizer", "schedule", "average", "anneal")
RECIPES = {
    "adamw": Way({"optimizer": "adamw"}, {"records": (4, 6, 8, 10, 12), "random": (4, 6, 8, 10, 12)}),
    "default": Way(
        {"learning_rate": 5e-2, **{name: getattr(UNTIL_RECALLED, name) for name in _DEFAULT}},  # the rate auto chooses
        {"records": (4, 6, 8), "random": (4, 6, 8, 10, 12)},
    ),
}
ARMS = {
    "sft": {},
    "ot": {"method": "ot"},
    "sw": {"method": "sw"},
    "curriculum": {"method": "curriculum"},
    "ot focus 1": {"method": "ot", "focus": 1.0},
    "ot margin 0.3": {"method": "ot", "margin": 0.3},
    "ot position 2": {"method": "ot", "position": 2.0},
}
ONE_TARGET = tuple(name for name in ARMS if name not in ("curriculum", "ot focus 1"))
"""Arms that differ from others where there is one record only."""

Scores = dict[tuple[int, int], dict[str, float]]
"""(rank, seed) -> measure -> share."""


def probed(
    base: Base, facts: MemorySet, length: int, arm: Mapping[str, object], out: Path, **settings: object
) -> Scores:
    method = arm.get("method", "sft")
    more = {name: value for name, value in arm.items() if name != "method"}
    config = ProbeConfig(lengths=[length], methods=[method], **settings, **more)
    probe(base, facts, config, out)
    scores = {}
    for result in Journal(out).results():
        tokens = result.cell.length
        scores[result.cell.rank, result.cell.train.seed] = {
            "exact": result.acc_em,
            "token": result.acc_token,
            "ordered": result.ordered / tokens,
            "certified": result.certified / result.records,
        }
    return scores


def ruled(base: Base, arm: Mapping[str, object], way: Way) -> Scores:
    """Adapters of all ranks and seeds as one stack on 500 pairs of the linear rule."""
    train, unseen = (encode(facts, base.tokenizer, context=base.context) for facts in linear_rule(500))
    placement = placement_on(None, base.model)
    configs = [TrainConfig(steps=1000, batch_size=20, seed=seed, **arm, **way.settings) for seed in way.seeds]
    runs = [Run(rank, placement, config) for rank in RULE_RANKS for config in configs]
    scores = {}
    for trained in train_stack(base, train, runs):
        with trained.attached(base.model):
            memory, beyond = (measure(base, facts, decode=True) for facts in (train, unseen[:200]))
        shares = {"memory": memory.acc_em, "generalization": beyond.acc_em, "certified": memory.certified / len(train)}
        scores[trained.rank, trained.config.seed] = shares
    return scores


def lines(task: str, arms: Mapping[str, Scores]) -> Iterator[dict[str, object]]:
    for name, scores in arms.items():
        measures = next(iter(scores.values()))
        for rank in sorted({rank for rank, _ in scores}):
            found = {m: [scores[cell][m] for cell in sorted(scores) if cell[0] == rank] for m in measures}
            means = {m: rounded(float(np.mean(values))) for m, values in found.items()}
            spread = {f"{m}_sd": rounded(float(np.std(v, ddof=1))) for m, v in found.items() if len(v) > 1}
            yield {"benchmark": "memft", "case": f"{task} {name} rank{rank}", **means, **spread}
    for name in list(arms)[1:]:
        measures = next(iter(arms[name].values()))
        differences = {m: _difference(arms[name], arms["sft"], m) for m in measures}
        yield {"benchmark": "memft", "case": f"{task} {name} minus sft", **differences}


def _difference(scores: Scores, other: Scores, measure: str) -> dict[str, float]:
    each = np.array([scores[cell][measure] - other[cell][measure] for cell in sorted(scores)])
    stream = np.random.default_rng(0)
    means = each[stream.integers(len(each), size=(10_000, len(each)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": rounded(float(each.mean())), "low": rounded(float(low)), "high": rounded(float(high))}


def run(task: str, base: Base, out: Path, way: Way, names: Sequence[str]) -> dict[str, Scores]:
    if task == "rule":
        return {name: ruled(base, ARMS[name], way) for name in ("sft", "ot")}
    common = {"ranks": way.ranks[task], "seeds": way.seeds, **way.settings}
    if task == "random":
        noise, names = random_tokens(tokens=256, seed=0, ids=reachable_ids(base)), [n for n in names if n in ONE_TARGET]
        return {
            name: probed(base, noise, 256, ARMS[name], out / f"random {name}", steps=600, **common) for name in names
        }
    book = published_phonebook()
    some = replace(book, facts=book.facts[:50])
    return {
        name: probed(base, some, 550, ARMS[name], out / f"records {name}", steps=900, batch_size=10, **common)
        for name in names
    }


def main(tasks: Sequence[str] = ("records", "random", "rule")) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=tasks)
    parser.add_argument("--recipe", choices=RECIPES, default="adamw")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = load()
    way = replace(RECIPES[given.recipe], seeds=[int(seed) for seed in given.seeds.split(",")])
    names = list(dict.fromkeys(["sft", *given.arms.split(",")]))  # all are compared with sft
    with tempfile.TemporaryDirectory() as scratch:
        for task in [given.only] if given.only else tasks:
            for line in lines(task, run(task, base, given.out or Path(scratch), way, names)):
                print(json.dumps(line, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
