from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import torch

from helpers.faulty import CELLS, probed
from memlaw.core.cells import CellResult
from memlaw.sweep.scheduler import ProbeProgress
from memlaw.training.result import StackProgress

PHASES: dict[str, Callable[[ProbeProgress], bool]] = {
    "before the first step": lambda event: event.news is None,
    "in the first pack": lambda event: isinstance(event.news, StackProgress) and event.news.step == 3,
    "behind the first cell": lambda event: isinstance(event.news, CellResult),
    "between two packs": lambda event: event.pack == 2 and event.news is None,
    "in the last pack": lambda event: event.pack == 2 and isinstance(event.news, StackProgress),
    "behind the last cell": lambda event: event.recorded == CELLS,
}


def probe_with_signal(out: Path, number: int, phase: str) -> None:
    """The probe on one thread; the signal arrives at the first event of the phase."""
    torch.set_num_threads(1)

    def send(event: ProbeProgress) -> None:
        if PHASES[phase](event):
            signal.raise_signal(number)

    probed(out, on_progress=send)
