"""What storing facts costs the model: side effects of several recipes, on the texts of a machine with CPython.

    OMP_NUM_THREADS=1 python benchmarks/side_effects.py [--model M] [--set facts|phonebook] [--seeds 0,1,2] ...

Each recipe trains an adapter until everything is recalled. Each line: steps, whether all is recalled, processor time,
and for two texts that no training saw (Python's documentation and a licence; with the bundled base, the held-out text
of its own training) the loss difference in nats a token, KL(base || adapted) and the share of next-token choices that
stay; with --near-misses also the share of so many near misses that are answered with a stored value.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import rounded
from torch import Tensor

from memlaw.adapter.on_model import placement_on
from memlaw.core.config import ADAMW, UNTIL_RECALLED, TrainConfig
from memlaw.core.facts import MemorySet
from memlaw.data import encode, read
from memlaw.data.near_misses import encoded_near_misses
from memlaw.diagnosis.side_effects import alone, yardstick
from memlaw.diagnosis.side_effects import side_effects as compared
from memlaw.model.base import Base, load
from memlaw.model.parts import frozen
from memlaw.model.tokenizer import token_ids
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

ROOT = Path(__file__).parent.parent
FACTS = ROOT / "examples" / "facts.jsonl"
PHONEBOOK = ROOT / "src" / "memlaw" / "law" / "published" / "PB1000.jsonl"
LICENCE = Path("/usr/share/common-licenses/GPL-3")
HELDOUT = ROOT / "tests" / "fixtures" / "heldout.txt"
WINDOW, WINDOWS = 256, 8

RECIPES: Mapping[str, TrainConfig] = {
    "before": replace(ADAMW, learning_rate=2e-2, protect=0.0),
    "small steps": replace(ADAMW, learning_rate=5e-3, protect=0.0),
    "adamw": ADAMW,
    "default": UNTIL_RECALLED,
    "unprotected": replace(UNTIL_RECALLED, protect=0.0),
    "rehearsed": replace(UNTIL_RECALLED, rehearse=8),
    "sft": replace(UNTIL_RECALLED, method="sft"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--set", choices=["facts", "phonebook"], default="facts")
    parser.add_argument("--records", type=int)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--placement")
    parser.add_argument("--recipes", default="before,default")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--near-misses", type=int, default=0)
    given = parser.parse_args()
    base = load(given.model, dtype="float32")
    whole = read(FACTS if given.set == "facts" else PHONEBOOK, tokenizer=base.tokenizer)
    memory_set = replace(whole, facts=whole.facts[: given.records])
    texts = windows(base, bundled=given.model == "memlaw/base")
    for seed in map(int, given.seeds.split(",")):
        for recipe in given.recipes.split(","):
            config = replace(RECIPES[recipe], seed=seed)
            near = encoded_near_misses(memory_set, base.tokenizer, 256, seed=seed, part="training")
            run = Run(given.rank, placement_on(given.placement, base.model), config, near if config.rehearse else ())
            line = {
                "benchmark": "side_effects",
                "case": f"{given.model}, {len(memory_set.facts)} of {given.set}, {run.placement}, rank {run.rank}, "
                f"{recipe}, seed {seed}",
                **outcome(base, memory_set, run, texts, given.near_misses),
            }
            print(json.dumps(line), flush=True)


def windows(base: Base, *, bundled: bool) -> dict[str, Tensor]:
    """Name -> rows [n, WINDOW] of a text."""
    topics = " ".join(text for _, text in sorted(pydoc_data.topics.topics.items())[:12])[:14_000]
    texts = {"heldout": HELDOUT.read_text()[:20_000]} if bundled else {"documentation": topics}
    if not bundled and LICENCE.exists():
        texts["licence"] = LICENCE.read_text()[:12_000]
    rows = {name: torch.tensor(token_ids(base.tokenizer, text)) for name, text in texts.items()}
    return {name: ids[: min(len(ids) // WINDOW, WINDOWS) * WINDOW].view(-1, WINDOW) for name, ids in rows.items()}


def outcome(
    base: Base, memory_set: MemorySet, run: Run, texts: Mapping[str, Tensor], near_misses: int
) -> dict[str, Any]:
    facts = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    before = alone(base, yardstick(base, memory_set, near_misses=near_misses)) if near_misses else None
    started = time.process_time()
    (trained,) = train_stack(base, facts, [run])
    seconds = time.process_time() - started
    line: dict[str, Any] = {
        "steps": trained.steps,
        "recalled": trained.recalled,
        "learning_rate": trained.config.learning_rate,
        "seconds": round(seconds),
    }
    with frozen(base.model):
        for name, rows in texts.items():
            line[name] = [rounded(value) for value in difference(base, trained.stack, rows)]
    if before is not None:
        with trained.attached(base.model):
            effects = compared(base, before)
        line["near_misses"] = [effects.near_miss, effects.near_misses]
    return line


@torch.no_grad()
def difference(base: Base, stack: Any, rows: Tensor) -> tuple[float, float, float]:
    """Loss difference, KL and top-1 agreement, by definition: from all logits of one window at a time."""
    sums = torch.zeros(3, dtype=torch.float64)
    for row in rows[:, None]:
        p = base.model(row).logits[0, :-1].float().log_softmax(-1)
        with stack.attached(base.model):
            q = base.model(row).logits[0, :-1].float().log_softmax(-1)
        loss = (p - q).gather(1, row[0, 1:, None]).mean()
        same = (p.argmax(-1) == q.argmax(-1)).float().mean()
        sums += torch.stack([loss, (p.exp() * (p - q)).sum(-1).mean(), same]).double()
    loss_difference, kl, agreement = (sums / len(rows)).tolist()
    return loss_difference, kl, agreement


if __name__ == "__main__":
    main()
