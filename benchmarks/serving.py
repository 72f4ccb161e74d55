"""Do facts come back from llama.cpp's server as `memlaw recall` says, in each precision? One line for each.

    OMP_NUM_THREADS=1 python benchmarks/serving.py [--for - --for own ...] [--data D --rank R] [--types f32,q4_0]
    OMP_NUM_THREADS=1 python benchmarks/serving.py --model FILE.gguf --adapter A --data D
    OMP_NUM_THREADS=1 python benchmarks/serving.py --many 1000

One adapter is trained for each `--for`: `-` is on the weights as loaded, `own` on those of each type in turn. For each
type, base and adapter are written as GGUF files; `recall` measures the file's dequantised weights, and `memlaw verify`
asks llama.cpp's own server for each fact. `difference` is the largest between the p of both, over tokens that greedy
decoding got right on both sides before its first error. `pure` is the file whose head has few bits too; the `float32
cache` server keeps keys and values in float32 and multiplies them so, the other one does as llama.cpp does by default.
A GGUF file as `--model` is served as it is. `--keep DIR` saves adapters, and trains none that is there already.

`--many N` times `verify` of N facts: once where the bare base says them all, once where it says none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from math import exp
from pathlib import Path
from typing import Any

import torch
from common import rounded

from memlaw.adapter.gguf import write_adapter
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.facts import Fact, MemorySet
from memlaw.core.precision import MARGINS
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
    parser.add_argument("--for", action="append", dest="wanted", default=None)
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--adapter", type=Path, default=None)
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--many", type=int, default=None)
    given = parser.parse_args()
    base = load(given.model, dtype="float32")
    if given.many is not None:
        _many(base, given.many)
        return
    with tempfile.TemporaryDirectory() as folder:
        for data in given.data or [FACTS, PHONES]:
            if given.model.endswith(".gguf"):
                work = Work(Path(folder), Path(given.model))
                _print(given, data, {"type": Path(given.model).name}, work, given.adapter)
            else:
                _in_each_type(given, base, data, Path(folder))


def _in_each_type(given: argparse.Namespace, base: Base, data: str, folder: Path) -> None:
    rank = given.rank or RANKS.get(data, 16)
    trained = Trained(base, data, rank, given.keep or folder)
    work = Work(folder, folder / "base.gguf")
    for kind in given.types.split(","):
        for pure in (False, True) if kind in ("q5_0", "q4_0") else (False,):
            write_base(base, work.base, kind, pure=pure)
            for precisions in dict.fromkeys(_precisions(wanted, kind) for wanted in given.wanted or ["-"]):
                adapter = given.adapter or trained.adapter(precisions)
                case = {"for": ",".join(precisions) or "-", "rank": rank, "type": kind, "pure": pure}
                _print(given, data, case, work, adapter)


@dataclass(frozen=True)
class Work:
    """Where files are written, and the base that is served."""

    folder: Path
    base: Path


def _precisions(wanted: str, kind: str) -> tuple[str, ...]:
    """What an adapter is trained for; `()` is the weights as loaded, which f32 is."""
    if wanted == "own":
        wanted = {"f32": "-", "f16": "float16", "bf16": "bfloat16"}.get(kind, kind)
    return () if wanted == "-" else tuple(wanted.split(","))


@dataclass(frozen=True)
class Trained:
    """Adapters of one set of facts, each trained once."""

    base: Base
    data: str
    rank: int
    folder: Path

    def adapter(self, precisions: tuple[str, ...]) -> Path:
        out = self.folder / f"{','.join(precisions) or '-'} {Path(self.data).name} {self.rank}"
        if not out.exists():
            margin = max((MARGINS[one] for one in precisions), default=UNTIL_RECALLED.margin)
            config = replace(UNTIL_RECALLED, served_as=precisions, margin=margin)
            run = Run(self.rank, placement_on(None, self.base.model), config)
            train_adapter(self.base, memory_set_for(self.base, self.data), run, out=out)
        return out


def _print(given: argparse.Namespace, data: str, case: dict[str, Any], work: Work, adapter: Path) -> None:
    base = load(str(work.base), dtype="float32")
    write_adapter(adapter, base.model.config, work.folder / "adapter.gguf")
    for line in _compared(base, data, adapter, work):
        more = {"model": Path(given.model).name, "data": Path(data).name}
        print(json.dumps({"benchmark": "serving", **more, **case, **line}), flush=True)


def _compared(base: Base, data: str, adapter: Path, work: Work) -> Iterator[dict[str, Any]]:
    memory_set = memory_set_for(base, data)
    encoded = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    with attach(base, adapter):
        here = measure(base, encoded, decode=True)
    yield {"runtime": "recall", **_counts(here)}
    facts = Facts(memory_set, encoded, base.tokenizer, base.stops)
    for name, settings in {"llama.cpp, float32 cache": EXACT, "llama.cpp": {}}.items():
        with llama_cpp(work.base, work.folder / "adapter.gguf", n_parallel=1, **settings) as server:
            begun = time.perf_counter()
            there = verify_facts(server.url, facts, VerifyConfig(concurrency=1)).report
            seconds = time.perf_counter() - begun
        more = {"difference": rounded(_difference(here, there)), "seconds": rounded(seconds)}
        yield {"runtime": name, **_counts(there), **more}


def _many(base: Base, count: int) -> None:
    """Time `verify` of this many facts on the bare base, with the settings that both sides have by default."""
    strange = memory_set_for(base, f"task:phonebook:tokens={11 * count}")
    for case, memory_set in {"all come back": _as_said(base, strange), "none comes back": strange}.items():
        encoded = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
        facts = Facts(memory_set, encoded, base.tokenizer, base.stops)
        with tempfile.TemporaryDirectory() as folder:
            write_base(base, path := Path(folder, "base.gguf"), "f32")
            with llama_cpp(path, n_parallel=4, n_ctx=2048, n_threads_http=4) as server:
                begun = time.perf_counter()
                there = verify_facts(server.url, facts, VerifyConfig()).report
                seconds = time.perf_counter() - begun
        line = {"benchmark": "serving", "case": case, **_counts(there), "seconds": rounded(seconds)}
        print(json.dumps(line), flush=True)


def _as_said(base: Base, memory_set: MemorySet) -> MemorySet:
    """The same prompts, each with what the base says to it, in as many tokens as its target has."""
    encoded = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    said = []
    for fact, plain in zip(encoded, memory_set.facts, strict=True):
        prompt = torch.tensor([fact.prompt])
        with torch.no_grad():
            ids = base.model.generate(prompt, max_new_tokens=fact.length, do_sample=False, pad_token_id=0)
        target = ids[0, fact.prompt_length :].tolist()
        said.append(Fact(plain.prompt, base.tokenizer.decode(target), plain.id, target_ids=tuple(target)))
    return MemorySet(tuple(said), eos=False, source="what the base says")


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
