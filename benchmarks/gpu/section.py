"""One section of the run: cases that cannot hurt one another, their results on disk after each of them."""

from __future__ import annotations

import contextlib
import json
import math
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import rounded

Case = Callable[[], Mapping[str, Any]]


class Section:
    """The cases of a section and what became of them.

    A case that raises, returns numbers that are not finite, or says `"ok": False` is recorded under `failed`; the next
    ones go on. A case that would not end in time is recorded under `skipped`.
    """

    def __init__(self, out: Path, *, small: bool, seconds: float) -> None:
        self.out, self.small = out, small or not torch.cuda.is_available()
        self.device = "cpu" if self.small else "cuda"
        self.dtype = torch.float32 if self.small else torch.bfloat16
        self.begun = time.monotonic()
        self.limit = seconds
        self.results: dict[str, Any] = {"device": self.device, "cases": {}, "failed": {}, "skipped": []}

    @property
    def seconds_left(self) -> float:
        return self.limit - (time.monotonic() - self.begun)

    def case(self, name: str, work: Case, *, takes: float = 5.0) -> Mapping[str, Any] | None:
        """What `work` returns, which is also recorded; None if it failed or there were not `takes` seconds left."""
        if self.seconds_left < takes:
            self.results["skipped"].append(name)
            self.write()
            return None
        begun = time.monotonic()
        found: dict[str, Any] | None = None
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            try:
                found = dict(work())
                self._record(name, found)
            except Exception as error:  # whatever it was, the other cases are worth having
                self.fail(name, error)
        kept = self.results["cases"].setdefault(name, {})
        kept["case_seconds"] = rounded(time.monotonic() - begun)
        sentences = {str(w.message)[:300] for w in warned if issubclass(w.category, UserWarning)}
        if sentences:
            kept["warnings"] = sorted(sentences)[:5]
        self.write()
        return found

    def _record(self, name: str, found: Mapping[str, Any]) -> None:
        strange: list[str] = []
        self.results["cases"][name] = _finite(found, name, strange)
        if strange:
            self.results["failed"][name] = {"error": f"not finite: {', '.join(strange)}"}
        elif found.get("ok") is False:
            self.results["failed"][name] = {"error": "the result is not what it must be"}

    def fail(self, name: str, error: Exception) -> None:
        last = traceback.format_exception(error)[-8:]
        self.results["failed"][name] = {
            "error": f"{type(error).__name__}: {error}"[:1000],
            "traceback": "".join(last).splitlines()[-16:],
        }
        # A traceback keeps its frames, and with them what they had on the GPU.
        traceback.clear_frames(error.__traceback__)
        if self.device == "cuda":
            with contextlib.suppress(RuntimeError):  # a kernel that crashed leaves a device that answers nothing
                torch.cuda.empty_cache()

    def write(self) -> None:
        self.results["seconds"] = rounded(time.monotonic() - self.begun)
        written = self.out.with_suffix(".part")
        written.write_text(json.dumps(self.results, allow_nan=False))
        written.replace(self.out)


def _finite(value: Any, path: str, strange: list[str]) -> Any:
    """`value` to three digits, with None for numbers that are not finite, whose paths go into `strange`."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one, f"{path}.{key}", strange) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one, f"{path}[{place}]", strange) for place, one in enumerate(value)]
    if isinstance(value, float):
        if math.isfinite(value):
            return rounded(value)
        strange.append(path)
        return None
    return value


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Peak:
    """Largest memory that PyTorch held on the GPU since `reset`, in GiB; nothing on the CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = 0.0
        self.reset()

    def reset(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**30

    def read(self) -> dict[str, float]:
        if self.device != "cuda":
            return {}
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30
        return {
            "peak_gib": peak,
            "peak_beyond_start_gib": peak - self.before,
            "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
