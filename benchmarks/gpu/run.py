"""Run every section under a time limit and gather what they found in one JSON file.

    benchmarks/gpu/run.sh [--out FILE] [--only SECTION,SECTION] [--small [--apart]]

On a GPU each section has a process of its own: one that crashes, hangs or fails in part leaves what it had found, and
the next ones run. The last line printed is the whole JSON document. Exit status: 0, or 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

TOTAL = 465.0
"""Seconds for all sections together."""

GRACE = 15.0
"""Seconds that a section has beyond those that it plans with, to end the case it is in."""


@dataclass(frozen=True)
class Planned:
    module: str
    seconds: float
    """After which its process is stopped."""
    function: str = "run"
    options: Mapping[str, Any] = field(default_factory=dict)


SECTIONS = {
    "environment": Planned("gpu.environment", 75),
    "kernels": Planned("gpu.kernels", 75),
    "head": Planned("gpu.lm_head", 100),
    "qwen3-8b": Planned("gpu.adapters", 110, options={"model": "qwen3-8b"}),
    "llama-3.1-8b": Planned("gpu.adapters", 100, options={"model": "llama-3.1-8b"}),
    "eviction": Planned("gpu.eviction", 120),
    "bundled": Planned("gpu.bundled", 100),
    "closer": Planned("gpu.adapters", 120, "run_closer", {"model": "qwen3-8b"}),
}
"""In the order in which they run, the least important last."""


def run_here(planned: Planned, out: Path, *, small: bool, seconds: float) -> None:
    """Run a section in this process; an exception outside of its cases is recorded like one inside."""
    from gpu.section import Section

    section = Section(out, small=small, seconds=seconds)
    try:
        getattr(importlib.import_module(planned.module), planned.function)(section, **planned.options)
    except Exception as error:
        traceback.print_exc()
        section.fail("section", error)
    section.write()


def run_apart(planned: Planned, out: Path, *, small: bool, seconds: float) -> None:
    """Run a section in a process of its own, which is stopped after `seconds`, with whatever it started itself."""
    log = out.with_suffix(".log")
    asked = ["--planned", json.dumps(asdict(planned)), "--out", str(out), "--seconds", str(seconds - GRACE)]
    command = [sys.executable, "-m", "gpu.run", *asked]
    with log.open("w") as lines:
        process = subprocess.Popen(
            [*command, *(["--small"] if small else [])], stdout=lines, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            reason = f"ended with status {process.wait(timeout=seconds)}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} seconds"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        found = read(out)
        found["failed"]["process"] = {"error": reason, "log": log.read_text(errors="replace").splitlines()[-20:]}
        out.write_text(json.dumps(found))


def read(out: Path) -> dict[str, Any]:
    if not out.exists():
        return {"cases": {}, "failed": {}, "skipped": []}
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def run_all(names: Sequence[str], out: Path, *, small: bool, apart: bool) -> dict[str, Any]:
    begun = time.monotonic()
    sections: dict[str, Any] = {}
    document: dict[str, Any] = {"benchmark": "gpu", "small": small, "failed": [], "seconds": 0.0, "sections": sections}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            started = time.monotonic()
            seconds = min(SECTIONS[name].seconds, TOTAL - (started - begun))
            part = Path(folder) / f"{name}.json"
            if seconds > 2 * GRACE:
                (run_apart if apart else run_here)(SECTIONS[name], part, small=small, seconds=seconds)
                sections[name] = read(part)
            else:
                sections[name] = {"cases": {}, "failed": {}, "skipped": ["everything: no time left"]}
            sections[name]["wall_seconds"] = round(time.monotonic() - started, 1)
            document["seconds"] = round(time.monotonic() - begun, 1)
            document["failed"] = [f"{key}: {case}" for key, one in sections.items() for case in one["failed"]]
            out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
            _tell(name, sections[name])
    return document


def _tell(name: str, found: Mapping[str, Any]) -> None:
    counts = ", ".join(f"{len(found[key])} {key}" for key in ("cases", "failed", "skipped"))
    print(f"{name}: {counts}, {found['wall_seconds']} s", file=sys.stderr, flush=True)


def has_gpu() -> bool:
    """Asked in another process: this one must not hold memory on the GPU."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write [default: gpu.json in $OUT, or results.json here]")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU, in one process")
    parser.add_argument("--apart", action="store_true", help="small too: each section in a process of its own")
    parser.add_argument("--planned", type=lambda text: Planned(**json.loads(text)), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=TOTAL, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.only = given.only.split(",")
    if unknown := set(given.only) - set(SECTIONS):
        parser.error(f"unknown sections {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
    return given


def main() -> None:
    given = arguments()
    if given.planned:
        run_here(given.planned, given.out, small=given.small, seconds=given.seconds)
        return
    small = given.small or not has_gpu()
    if small:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton loads: its kernels then run on the CPU
    folder = os.environ.get("OUT")
    out = given.out or (Path(folder) / "gpu.json" if folder else HERE / "results.json")
    document = run_all(given.only, out, small=small, apart=given.apart or not small)
    print(json.dumps(document, allow_nan=False))
    sys.exit(1 if document["failed"] else 0)


if __name__ == "__main__":
    main()
