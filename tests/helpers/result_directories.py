from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from helpers import sample
from memlaw.core.cells import CellResult
from memlaw.sweep.journal import Journal, ProbeSpec

RANKS, LENGTHS = (1, 2, 4, 8), (16, 64, 256)


def grid(**changes: object) -> list[CellResult]:
    """Finished cells on the law of `sample`, with a little scatter."""
    law = sample.PowerLaw()
    cells = []
    for number, (rank, length) in enumerate((rank, length) for rank in RANKS for length in LENGTHS):
        gain = min(law.predict(rank, length) * (1 + 0.01 * (number % 3 - 1)), 9.9)
        share = float(gain > 9)
        cells.append(sample.cell(rank, length, 10.0 - gain, acc_token=share, **changes))
    return cells


def a_probe(directory: Path, results: Iterable[CellResult], *, data: str = "codes") -> Path:
    """A probe's directory that holds these results."""
    journal = Journal(directory)
    journal.claim(
        ProbeSpec(identity={"grid": data}, packs=(), about={"model": "tiny", "outline": "o" * 64, "data": data})
    )
    for result in results:
        journal.publish(result)
    return directory
