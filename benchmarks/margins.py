"""Which margin does a certificate in another precision need? Adapters trained in float32, recalled in each precision.

    OMP_NUM_THREADS=1 python benchmarks/margins.py [--model M] [--margins 0.1,0.5] [--seeds 0,1,2] ...

One adapter for each margin and seed, all in one stack, on the twelve facts of examples/facts.jsonl, rank 8, until
recalled. Each line: how many of the records are certified in `dtype`, the smallest of their margins there, and the
tolerance that certificates need there (twice the largest difference seen between teacher-forced and cached losses).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from common import rounded

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach, save
from memlaw.core.config import UNTIL_RECALLED
from memlaw.data import encode, read
from memlaw.diagnosis.measure import measure
from memlaw.model.base import load
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

FACTS = Path(__file__).parent.parent / "examples" / "facts.jsonl"
DTYPES = ("float32", "float16", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--learning-rate", type=float, default=UNTIL_RECALLED.learning_rate)
    parser.add_argument("--method", default="ot")
    parser.add_argument("--margins", default="0.1,0.2,0.3,0.4,0.5,0.6")
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    margins = [float(margin) for margin in given.margins.split(",")]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    base = load(given.model, dtype="float32")
    facts = encode(read(FACTS), base.tokenizer, context=base.context, stops=base.stops)
    recipe = replace(UNTIL_RECALLED, learning_rate=given.learning_rate, method=given.method)
    where = placement_on(None, base.model)
    wanted = [(margin, seed) for margin in margins for seed in seeds]
    runs = [Run(8, where, replace(recipe, margin=margin, seed=seed)) for margin, seed in wanted]
    with tempfile.TemporaryDirectory() as folder:
        trained = train_stack(base, facts, runs)
        for place, one in enumerate(trained):
            save(one.stack, one.placement, base, Path(folder, str(place)))
        for dtype in DTYPES:
            judged = load(given.model, dtype=dtype)
            for place, (margin, seed) in enumerate(wanted):
                with attach(judged, Path(folder, str(place))):
                    report = measure(judged, facts, decode=True, explain=True)
                line = {
                    "benchmark": "margins",
                    "case": f"{given.model}, {dtype}, margin {margin:g}, seed {seed}",
                    "steps": trained[place].steps,
                    "recalled": trained[place].recalled,
                    "records": report.records,
                    "exact": sum(bool(item.exact) for item in report.items),
                    "certified": report.certified,
                    "min_margin": rounded(report.min_margin),
                    "tolerance": rounded(report.tolerance),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
