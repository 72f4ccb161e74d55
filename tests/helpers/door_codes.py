from __future__ import annotations

from memlaw.core.facts import Fact, MemorySet

FACTS = MemorySet(
    tuple(Fact(f"key {number}:", f"#{7919 * number % 10_000:04d}", f"f{number}") for number in range(1, 5)),
    eos=True,
    source="codes",
)
