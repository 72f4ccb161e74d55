"""The machine: its card, versions, and the rates of products and copies that every other time can be held against."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu.section import Section, synchronize

PACKAGES = (
    "torch", "triton", "transformers", "accelerate", "peft", "numpy", "pydantic", "liger-kernel", "cut-cross-entropy",
)  # fmt: skip


def machine(section: Section) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
    }
    if section.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "capability": list(torch.cuda.get_device_capability(0)),
            "multiprocessors": card.multi_processor_count,
            "memory_gib": card.total_memory / 2**30,
            "free_gib": torch.cuda.mem_get_info()[0] / 2**30,
            "float32_products": torch.get_float32_matmul_precision(),
        }
    return found


def driver() -> Mapping[str, Any]:
    fields = "driver_version,power.limit,clocks.max.sm,clocks.max.mem"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    values = printed.splitlines()[0].split(", ")
    return dict(zip(fields.split(","), values, strict=True))


def products(section: Section) -> Mapping[str, Any]:
    """TFLOP/s of square products in the precision of the models, and in float32, which adapters have."""
    size = 256 if section.small else 8192
    found = {}
    for name, dtype in (("models", section.dtype), ("float32", torch.float32)):
        x, y = (torch.randn(size, size, device=section.device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(x)
        each = seconds_each(lambda x=x, y=y, out=out: torch.mm(x, y, out=out), section, for_seconds=0.5)
        found[f"{name}_tflops"] = 2 * size**3 / each / 1e12
    return found


def copies(section: Section) -> Mapping[str, Any]:
    """GB/s: on the device, bytes read and written; between main memory and the device, bytes moved."""
    count = 1 << (20 if section.small else 30)
    x = torch.zeros(count, dtype=torch.uint8, device=section.device)
    y = torch.empty_like(x)
    found = {"device_gbs": 2 * count / seconds_each(lambda: y.copy_(x), section, for_seconds=0.3) / 1e9}
    if section.device == "cuda":
        host = torch.zeros(count, dtype=torch.uint8)
        found["to_device_gbs"] = count / seconds_each(lambda: y.copy_(host), section, for_seconds=0.3) / 1e9
    return found


def seconds_each(work: Callable[[], object], section: Section, *, for_seconds: float) -> float:
    """Seconds of one call among as many as fit into `for_seconds`, by the clock."""
    work()
    synchronize(section.device)
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < (0.05 if section.small else for_seconds):
        for _ in range(5):  # enough in flight to keep the device busy between two looks at the clock
            work()
        calls += 5
        synchronize(section.device)
    return (time.perf_counter() - begun) / calls


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run(section: Section) -> None:
    section.case("machine", lambda: machine(section))
    if section.device == "cuda":
        section.case("driver", driver)
    section.case("products", lambda: products(section))
    section.case("copies", lambda: copies(section))
