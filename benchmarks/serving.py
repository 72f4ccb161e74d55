"""Do facts come back from llama.cpp's server as `memlaw recall` says, in each precision? One line for each.

    OMP_NUM_THREADS=1 python benchmarks/serving.py [--model M] [--data D] [--rank R] [--types f32,q4_0] [--adapter A]

An adapter is trained in float32 (or, with --adapter, read). For each type of weights, base and adapter are written as
GGUF files; `recall` measures the file's dequantised weights, and `memlaw verify` asks llama.cpp's own server for each
fact. `difference` is the largest between the p of both, over tokens that greedy decoding got right on both sides before
its first error. `pure` is the file whose head has few bits too; `default server`, one that keeps keys and values in
float16 and picks its own way to multiply them, as llama.cpp does unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import takewhile
from math import exp
from pathlib import Path
from typing import Any

from common import rounded

from memlaw.adapter.gguf import write_adapter
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.recall import RecallReport
from memlaw.data import encode
from memlaw.data.load import memory_set_for
from memlaw.diagnosis.measure import measure
from memlaw.model.base import Base, load
from memlaw.model.gguf_write import TYPES, write_base
from memlaw.serving.settings import VerifyConfig
from memlaw.serving.verify import Facts, verify_facts
from memlaw.training.adapter import train_adapter
from memlaw.training.run import Run

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from helpers.servers import EXACT, llama_cpp

FACTS = str(Path(__file__).parent.parent / "examples" / "facts.jsonl")
PHONES = "task:phonebook:tokens=600"
"""54 numbers."""

RANKS = {FACTS: 8, PHONES: 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--data", action="append", default=None)
    parser.add_argument("--rank", type=int, default=None)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--adapter", type=Path, default=None)
    given = parser.parse_args()
    base = load(given.model, dtype="float32")
    for data in given.data or [FACTS, PHONES]:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            adapter = given.adapter or _trained(base, data, given.rank or RANKS.get(data, 16), work / "adapter")
            write_adapter(adapter, base.model.config, work / "adapter.gguf")
            for kind in given.types.split(","):
                for pure in (False, True) if kind in ("q5_0", "q4_0") else (False,):
                    write_base(base, work / "base.gguf", kind, pure=pure)
                    for line in _compared(base, data, adapter, work):
                        case = {"model": given.model, "data": Path(data).name, "type": kind, "pure": pure}
                        print(json.dumps({"benchmark": "serving", **case, **line}), flush=True)


def _trained(base: Base, data: str, rank: int, out: Path) -> Path:
    train_adapter(base, memory_set_for(base, data), Run(rank, placement_on(None, base.model), UNTIL_RECALLED), out=out)
    return out


def _compared(original: Base, data: str, adapter: Path, work: Path) -> Iterator[dict[str, Any]]:
    base = load(str(work / "base.gguf"), dtype="float32")
    memory_set = memory_set_for(original, data)
    encoded = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    with attach(base, adapter):
        here = measure(base, encoded, decode=True)
    yield {"runtime": "recall", **_counts(here)}
    facts = Facts(memory_set, encoded, base.tokenizer, base.stops)
    for name, settings in {"llama.cpp, float32 cache": EXACT, "llama.cpp": {}}.items():
        with llama_cpp(work / "base.gguf", work / "adapter.gguf", n_parallel=1, **settings) as server:
            begun = time.perf_counter()
            there = verify_facts(server.url, facts, VerifyConfig(concurrency=1)).report
            seconds = time.perf_counter() - begun
        more = {"difference": rounded(_difference(here, there)), "seconds": rounded(seconds)}
        yield {"runtime": name, **_counts(there), **more}


def _counts(report: RecallReport) -> dict[str, Any]:
    return {
        "facts": report.records,
        "verbatim": sum(bool(item.exact) for item in report.items),
        "certified": report.certified,
        "tokens": report.tokens,
        "ordered": report.ordered,
        "min_margin": rounded(report.min_margin),
    }


def _difference(here: RecallReport, there: RecallReport) -> float:
    return max(
        abs(exp(-a) - exp(-b))
        for x, y in zip(here.items, there.items, strict=True)
        for a, b, *_ in takewhile(
            lambda step: all(step[2:]), zip(x.tokens.nll, y.tokens.nll, x.tokens.top1, y.tokens.top1, strict=True)
        )
    )


if __name__ == "__main__":
    main()
