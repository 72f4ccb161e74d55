"""From the settings of a probe to its cells, and from cells to the packs that train together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memlaw.core.canonical import to_dict
from memlaw.core.cells import Cell
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.journal import ProbeSpec

if TYPE_CHECKING:
    from memlaw.adapter.placement import Placement
    from memlaw.model.base import Base

ADAPTERS_PER_PACK = 32
"""Most adapters trained as one stack: what a kill can cost."""

TOKENS_PER_PACK = 8192
"""Most target tokens of a stack on the CPU, over all its adapters: more would not be faster."""

MEMORY_PER_PACK = 0.5
"""Share of the free memory that a step of a stack may hold."""


def plan_packs(cells: Sequence[Cell], tokens: int = TOKENS_PER_PACK) -> tuple[tuple[Cell, ...], ...]:
    """Which cells train together: those of one length, in stacks of equal size of at most `ADAPTERS_PER_PACK` adapters
    and `tokens` target tokens in all, unless one alone has more.

    A function of the grid, and what it gives is written down, so that a cell always trains in the same company.
    Neighbouring ranks share a stack, which pads every adapter to the largest rank in it.
    """
    packs: list[tuple[Cell, ...]] = []
    for length, group in itertools.groupby(sorted(cells, key=lambda cell: cell.length), key=lambda cell: cell.length):
        same = sorted(group, key=lambda cell: (cell.rank, cell.train.method, cell.train.seed))
        most = max(1, min(ADAPTERS_PER_PACK, tokens // length))
        size = math.ceil(len(same) / math.ceil(len(same) / most))
        packs += (tuple(same[start : start + size]) for start in range(0, len(same), size))
    return tuple(packs)


def grid_cells(
    config: ProbeConfig, lengths: Sequence[int], base: Base, memory_set: MemorySet, placement: Placement
) -> list[Cell]:
    return [
        Cell(
            model=base.fingerprint,
            tokenizer=base.tokenizer_fingerprint,
            data=memory_set.fingerprint,
            placement=str(placement),
            rank=rank,
            length=length,
            train=config.train(method, seed),
            dtype=base.dtype,
            libraries=libraries_used(),
            device=base.device.partition(":")[0],
        )
        for length, rank, method, seed in itertools.product(lengths, config.ranks, config.methods, config.seeds)
    ]


def tokens_per_pack(base: Base, facts: Sequence[EncodedFact], placement: Placement, rank: int) -> int:
    """How many target tokens a stack may have in all, from what a step of one adapter on the longest fact holds."""
    import torch

    from memlaw.model.memory import free_bytes
    from memlaw.training.engine import bytes_per_token

    fact = max(facts, key=lambda fact: fact.length)
    room = MEMORY_PER_PACK * free_bytes(base.device) / bytes_per_token(base, fact, placement, rank)
    return min(int(room), TOKENS_PER_PACK) if torch.device(base.device).type == "cpu" else int(room)


def libraries_used() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def probe_about(base: Base, memory_set: MemorySet) -> dict[str, Any]:
    """What people, and `memlaw plan`, like to know of a probe although it sets no cell apart."""
    from memlaw.model.outline_from_module import outline_of_model

    return {
        "model": base.name,
        "outline": outline_of_model(base.model).digest,
        "data": memory_set.source,
        "warnings": [*base.warnings, *memory_set.warnings],
    }


def probe_spec(grid: Sequence[Cell], tokens: int, about: dict[str, Any]) -> ProbeSpec:
    packs = tuple(tuple(cell.key for cell in pack) for pack in plan_packs(grid, tokens))
    return ProbeSpec(_identity(grid), packs, about)


_AXES = {"rank": "ranks", "length": "lengths", "method": "methods", "seed": "seeds"}


def _identity(cells: Sequence[Cell]) -> dict[str, Any]:
    """What determines the results of a grid: the values along its axes, and everything its cells have in common."""
    flat = [_flat(cell) for cell in cells]
    axes = {plural: sorted({cell[name] for cell in flat}) for name, plural in _AXES.items()}
    return axes | {name: value for name, value in flat[0].items() if name not in _AXES}


def _flat(cell: Cell) -> dict[str, Any]:
    settings = to_dict(cell)
    return {**settings.pop("train"), **settings}


def prefixes_of(base: Base, memory_set: MemorySet, lengths: Sequence[int]) -> dict[int, tuple[EncodedFact, ...]]:
    """Length asked for -> the facts that come closest to as many target tokens without exceeding them."""
    from memlaw.data import check_context, encode, take

    encoded = encode(memory_set, base.tokenizer, context=None)
    prefixes = {length: take(encoded, length) for length in lengths}
    if base.context is not None:
        check_context(itertools.chain.from_iterable(prefixes.values()), base.context)
    return prefixes
