"""Do facts come back where the base is quantised? Adapters trained with and without `--for`, judged in each precision.

    OMP_NUM_THREADS=1 python benchmarks/served.py [--model M] [--data D] [--rank R] [--for q4_0 --for q8_0,q4_0 ...]

One adapter for each `--for` (`-`: the weights as loaded) and margin, until recalled. Each line: how many records are
certified and come back verbatim in a precision, and the smallest margin; `8-bit inputs` are the same with the inputs of
all linear modules rounded to blocks of 32 in 8 bits, as llama.cpp does before it multiplies with quantised weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import rounded as short
from torch import nn

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.recall import RecallReport
from memlaw.data import encode
from memlaw.data.load import memory_set_for
from memlaw.diagnosis.measure import measure
from memlaw.model.base import Base, load
from memlaw.model.rounding import rounded, served_as
from memlaw.training.adapter import train_adapter
from memlaw.training.run import Run

PRECISIONS = ("float32", "bfloat16", "float16", "q8_0", "q5_0", "q4_0")


@contextmanager
def inputs_in_8_bits(model: nn.Module) -> Iterator[None]:
    """Inside, the linear modules of the base see rounded inputs. What an adapter adds is computed from exact ones."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (rounded(args[0], "q8_0"), *args[1:])

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and "lora_" not in name:
                hooks.callback(module.register_forward_pre_hook(hook).remove)
        yield


def shift(exact: RecallReport, rough: RecallReport) -> float:
    """By how many nats the rounding of inputs raises the loss of a token at most."""
    pairs = zip(exact.items, rough.items, strict=True)
    return max(b - a for x, y in pairs for a, b in zip(x.tokens.nll, y.tokens.nll, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="memlaw/base")
    parser.add_argument("--data", default="task:phonebook:tokens=600")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--for", action="append", dest="wanted", default=None)
    parser.add_argument("--margins", default="0.1,0.38")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--keep", type=Path, default=None)
    given = parser.parse_args()
    base = load(given.model, dtype="float32")
    facts = memory_set_for(base, given.data)
    encoded = encode(facts, base.tokenizer, context=base.context, stops=base.stops)
    where = placement_on(None, base.model)
    for wanted in given.wanted or ["-", "q8_0", "q5_0", "q4_0", "q8_0,q4_0", "float32,q8_0,q5_0,q4_0"]:
        for margin in map(float, given.margins.split(",")):
            served = () if wanted == "-" else tuple(wanted.split(","))
            config = replace(UNTIL_RECALLED, margin=margin, seed=given.seed, served_as=served)
            with tempfile.TemporaryDirectory() as folder:
                out = Path(given.keep or folder, f"{wanted}-{margin}-{given.rank}-{given.seed}")
                trained = train_adapter(base, facts, Run(given.rank, where, config), out=out)
                case = {"for": wanted, "margin": margin, "steps": trained.steps, "recalled": trained.recalled}
                case |= {"seconds": short(trained.seconds), "tokens": trained.tokens_forwarded, "rank": given.rank}
                for precision in PRECISIONS:
                    judged = served_as(base, precision)
                    print(json.dumps(case | {"as": precision} | _judged(judged, out, encoded)), flush=True)


def _judged(judged: Base, out: Path, encoded: Any) -> dict[str, Any]:
    with attach(judged, out):
        exact = measure(judged, encoded, decode=True, explain=True)
        with inputs_in_8_bits(judged.model):
            rough = measure(judged, encoded, decode=True)
    return {
        "records": exact.records,
        "verbatim": sum(bool(item.exact) for item in exact.items),
        "certified": exact.certified,
        "min_margin": short(exact.min_margin),
        "tolerance": short(exact.tolerance),
        "8-bit inputs": {
            "verbatim": sum(bool(item.exact) for item in rough.items),
            "certified": rough.certified,
            "min_margin": short(rough.min_margin),
            "tolerance": short(rough.tolerance),
            "shift": short(shift(exact, rough)),
        },
    }


if __name__ == "__main__":
    main()
