"""What the benchmarks share: medians of interleaved repeats, peaks of memory, one JSON line a case."""

from __future__ import annotations

import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def medians(
    cases: Mapping[str, Callable[[], object]], *, repeats: int, warm: int = 1, device: str = "cpu"
) -> dict[str, float]:
    """Seconds of each case: the median over `repeats` rounds in which all take their turn, after `warm` unmeasured.

    Interleaved, so that a machine that slows down or is shared slows all sides alike. On the CPU one thread and
    process CPU time, which waiting does not count in; on an accelerator the time between two CUDA events.
    """
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warm + repeats):
        for name, work in cases.items():
            taken = _on_cuda(work) if device == "cuda" else _on_cpu(work)
            if turn >= warm:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _on_cpu(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _on_cuda(work: Callable[[], object]) -> float:
    event: Any = torch.cuda.Event
    begun, ended = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begun.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / 1e3


def peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Most memory that `prepare(*arguments)()` took beyond what was held before the last call; in a process of its own.

    Linux only. What `prepare` does is not counted: there belong the inputs, and a small first run that loads libraries.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as process:
        return process.submit(_peak_here, prepare, *arguments).result()


def _peak_here(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    torch.set_num_threads(1)
    work = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts again from what is resident now
    before = _status("VmRSS")
    kept = work()  # the results are still held when the peak is read
    peak = _status("VmHWM") - before
    del kept
    return peak


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, f"/proc/self/status has no {field}"
    return 1024 * int(found[1])


def report(benchmark: str, case: str, ratio: float, **more: Any) -> None:
    """Print one line of JSON. A `ratio` above 1 says that memlaw is faster or smaller than the other side."""
    line = {"benchmark": benchmark, "case": case, "ratio": rounded(ratio), **more}
    print(json.dumps(line, allow_nan=False), flush=True)


def rounded(value: float) -> float:
    """To three significant digits: more would be noise."""
    return float(f"{value:.3g}")
