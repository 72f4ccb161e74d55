"""The whole chain on the bundled base: `memlaw train` and `memlaw recall` on the device."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gpu.section import Section
from memlaw.cli.app import app

FACTS = Path(__file__).resolve().parents[2] / "examples" / "facts.jsonl"
QUICK = ("--learning-rate", "0.02", "--protect", "0", "--batch-size", "0", "--no-side-effects")
"""For the small case: nothing is tried out, measured or protected."""


def command(section: Section, *words: str) -> Mapping[str, Any]:
    """The JSON document that a command of memlaw prints, and how long it took."""
    begun = time.perf_counter()
    done = CliRunner().invoke(app, [*words, "--device", section.device, "--json"])
    if done.exit_code not in (0, 1):  # 1: some facts are not recalled
        raise RuntimeError(f"memlaw {words[0]} ended with {done.exit_code}: {done.stderr[-800:]}") from done.exception
    return {**json.loads(done.stdout), "wall_seconds": time.perf_counter() - begun}


def train(section: Section, out: Path, *options: str) -> Mapping[str, Any]:
    found = command(section, "train", str(FACTS), "--rank", "8", "--out", str(out), *options)
    kept = ("steps", "seconds", "wall_seconds", "recalled", "loss_final", "learning_rate", "placement")
    return {name: found[name] for name in kept} | {"ok": found["recalled"]}


def recall(section: Section, adapter: Path, *options: str) -> Mapping[str, Any]:
    found = command(section, "recall", str(FACTS), "--adapter", str(adapter), "--decode", *options)
    kept = {name: found[name] for name in ("records", "acc_em", "certified", "rounding", "min_margin", "wall_seconds")}
    return kept | {"ok": kept["certified"] == kept["records"]}


def chain(section: Section, folder: Path, dtype: str, options: Sequence[str]) -> None:
    adapter, precision = folder / dtype, ("--dtype", dtype)
    if section.case(f"train {dtype}", lambda: train(section, adapter, *precision, *options), takes=20):
        section.case(f"recall {dtype}", lambda: recall(section, adapter, *precision), takes=10)


def run(section: Section) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32",) if section.small else ("float32", "bfloat16"):
            chain(section, Path(folder), dtype, QUICK if section.small else ())
