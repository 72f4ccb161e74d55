from __future__ import annotations

from helpers import sample
from helpers.words import words
from memlaw.cli.fit import bits_lines
from memlaw.cli.output import SHOWN
from memlaw.cli.probe import failure_lines
from memlaw.core.recall import LN2


def test_cells_without_a_measurement_are_told_with_their_reason() -> None:
    results = [sample.cell(1, 16), *(sample.diverged(rank, 32, "the loss was no number") for rank in range(2, 9))]
    lines = list(failure_lines(results))
    assert lines[0] == "  rank 2, length 32, sft, seed 42: diverged. The loss was no number."
    assert len(lines) == SHOWN + 1
    assert lines[-1] == "  ... and 2 more"
    assert list(failure_lines(results[:1])) == []


def test_the_densest_memory_of_a_probe_is_told_in_bits() -> None:
    sparse = sample.cell(8, 1000, 7 * LN2, loss_memoryless=10 * LN2, certified_tokens=0)
    dense = sample.cell(2, 1000, 9 * LN2, loss_memoryless=10 * LN2, certified_tokens=0)
    assert words(bits_lines([sparse, dense, sample.cell(1, 1000), sample.diverged(1, 16)])) == (
        "At most 1.95 bits are stored per parameter of the adapter (rank 2, length 1,000: 1,000 bits); published: "
        "2 (knowledge, whole models), 3.5 to 3.8 (raw memorisation, whole models)."
    )
    assert list(bits_lines([sample.cell(1, 1000)])) == []
