"""The overhead of an engine per pack, and the speed-up by sixteen workers on packs that sleep.

    python benchmarks/chaos/engine_scaling.py [--cells 1000] [--seconds 4] [--engines inline,ray]

Overhead is the time between two outcomes of one worker whose packs only record a cell. The speed-up is fifty times the
time of one worker for a fiftieth of the packs, over the time of sixteen workers for all packs: `ratio` counts from the
start of the first pack, `ratio_with_start` from the call, including the start of Ray and of sixteen Python processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

from engine_simulated import run_all, specs

from memlaw.sweep.engines.base import Engine, Inline
from memlaw.sweep.engines.ray import OnRay

WORKERS = 16


def overhead(engine: Engine, packs: int = 200) -> dict[str, float]:
    """Milliseconds between outcomes of a single worker whose packs only record a cell."""
    with tempfile.TemporaryDirectory() as folder:
        times = list(run_all(engine, specs(packs, 1, 0.0), Path(folder, "out")))
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
    return {"median_ms": rounded(statistics.median(gaps)), "mean_ms": rounded(statistics.mean(gaps))}


def measured_seconds(engine: Engine, packs: int, seconds: float) -> tuple[float, float]:
    """Seconds for packs that sleep, from the start of the first pack and from the call."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        times = list(run_all(engine, specs(packs, 1, seconds), Path(folder, "out")))
    return times[-1] - times[0] + seconds, times[-1] - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--engines", default="inline,ray")
    options = parser.parse_args()
    if "inline" in options.engines:
        report("engine_overhead", "inline", overhead(Inline()), target_ms=20)
    if "ray" in options.engines:
        report("engine_overhead", "ray", overhead(OnRay(cpus=1)), target_ms=100)
        alone = 50 * measured_seconds(OnRay(cpus=1), options.cells // 50, options.seconds)[0]
        taken, whole = measured_seconds(OnRay(cpus=WORKERS), options.cells, options.seconds)
        ratios = {"ratio": rounded(alone / taken), "ratio_with_start": rounded(alone / whole)}
        times = {"seconds": rounded(taken), "with_start": rounded(whole), "one_worker": rounded(alone)}
        report("engine_scaling", f"ray, {WORKERS} workers", ratios | times, cells=options.cells, target=14)


def report(benchmark: str, case: str, values: dict[str, float], **more: float) -> None:
    print(json.dumps({"benchmark": benchmark, "case": case, **values, **more}), flush=True)


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
