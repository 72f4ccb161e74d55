"""From the settings of a probe to its cells, and from cells to the packs that train together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memlaw.core.cells import ALGORITHM_VERSION, Cell, cell_to_dict
from memlaw.core.config import identity
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.journal import ProbeSpec
from memlaw.sweep.journal.spec import AXES, extends
from memlaw.sweep.pack import Pack

if TYPE_CHECKING:
    from memlaw.adapter.placement import Placement
    from memlaw.model.base import Base

ADAPTERS_PER_PACK = 32
"""Most adapters trained as one stack, and so lost together if the process is killed."""

TOKENS_PER_PACK = 8192
"""Most target tokens of a stack on the CPU, all its adapters together: larger stacks are not faster."""

MEMORY_PER_PACK = 0.5
"""Share of the free memory that one step of a stack may take."""


def plan_packs(cells: Sequence[Cell], tokens: int = TOKENS_PER_PACK) -> tuple[Pack, ...]:
    """Stacks of equal size for the cells of each length, with at most `ADAPTERS_PER_PACK` adapters and `tokens`
    target tokens in all; a single adapter may exceed `tokens`.

    A function of the grid alone, and recorded, so that a cell always trains beside the same others and its bits repeat.
    Neighbouring ranks share a stack, since every adapter is padded to the largest rank in it.
    """
    packs: list[Pack] = []
    for length, group in itertools.groupby(sorted(cells, key=lambda cell: cell.length), key=lambda cell: cell.length):
        members = sorted(group, key=lambda cell: (cell.rank, cell.train.method, cell.train.seed))
        largest = max(1, min(ADAPTERS_PER_PACK, tokens // length))
        size = math.ceil(len(members) / math.ceil(len(members) / largest))
        packs += (tuple(members[start : start + size]) for start in range(0, len(members), size))
    return tuple(packs)


def grid_cells(
    config: ProbeConfig, lengths: Sequence[int], base: Base, memory_set: MemorySet, placement: Placement
) -> list[Cell]:
    from memlaw.data import stored_fingerprint

    return [
        Cell(
            model=base.fingerprint,
            tokenizer=base.tokenizer_fingerprint,
            data=stored_fingerprint(memory_set, base.tokenizer, base.stops),
            placement=str(placement),
            rank=rank,
            length=length,
            train=config.train(method, seed),
            dtype=base.held_in,
            libraries=libraries_used(),
            device=device_kind(base),
        )
        for length, rank, method, seed in itertools.product(lengths, config.ranks, config.methods, config.seeds)
    ]


def tokens_per_pack(base: Base, facts: Sequence[EncodedFact], placement: Placement, rank: int) -> int:
    """Target tokens that fit into one stack, by the memory that a step of one adapter on the longest fact takes."""
    import torch

    from memlaw.model.memory import free_bytes
    from memlaw.training.engine import bytes_per_token

    fact = max(facts, key=lambda fact: fact.length)
    tokens = int(MEMORY_PER_PACK * free_bytes(base.device) / bytes_per_token(base, fact, placement, rank))
    return min(tokens, TOKENS_PER_PACK) if torch.device(base.device).type == "cpu" else tokens


def libraries_used() -> str:
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def probe_about(base: Base, memory_set: MemorySet) -> dict[str, Any]:
    """What people and `memlaw plan` want to know about a probe, beyond what determines its results."""
    from memlaw.model.outline_from_module import outline_of_model

    return {
        "model": base.name,
        "outline": outline_of_model(base.model).digest,
        "data": memory_set.source,
        "warnings": [*base.warnings, *memory_set.warnings],
    }


def probe_spec(grid: Sequence[Cell], tokens: int, about: dict[str, Any], there: ProbeSpec | None = None) -> ProbeSpec:
    """The spec of a grid. If it extends the one `there`, the packs of that remain, and the other cells get new ones."""
    ours = grid_identity(grid)
    kept = there.packs if there is not None and extends(ours, there.identity) else ()
    packed = {key for pack in kept for key in pack}
    added = plan_packs([cell for cell in grid if cell.key not in packed], tokens)
    return ProbeSpec(ours, (*kept, *(tuple(cell.key for cell in pack) for pack in added)), about)


def identity_of_settings(config: ProbeConfig) -> dict[str, Any]:
    """What the settings alone say of the identity of a grid: all but lengths, model, facts and placement."""
    recipe = identity(config.train(config.methods[0], config.seeds[0]))
    axes = {"ranks": config.ranks, "methods": config.methods, "seeds": config.seeds}
    shared = {name: value for name, value in recipe.items() if name not in AXES}
    return {**{axis: list(values) for axis, values in axes.items()}, **shared}


def identity_of_base(base: Base, placement: Placement) -> dict[str, Any]:
    """What a loaded model adds to it."""
    return {
        "model": base.fingerprint,
        "tokenizer": base.tokenizer_fingerprint,
        "placement": str(placement),
        "dtype": base.held_in,
        "algorithm": ALGORITHM_VERSION,
        "libraries": libraries_used(),
        "device": device_kind(base),
    }


def device_kind(base: Base) -> str:
    return base.device.partition(":")[0]


def grid_identity(cells: Sequence[Cell]) -> dict[str, Any]:
    """What determines the results of a grid: the values along its axes and everything its cells share."""
    flat = [_flat(cell) for cell in cells]
    axes = {plural: sorted({cell[name] for cell in flat}) for name, plural in AXES.items()}
    return axes | {name: value for name, value in flat[0].items() if name not in AXES}


def _flat(cell: Cell) -> dict[str, Any]:
    settings = cell_to_dict(cell)
    return {**settings.pop("train"), **settings}


def prefixes_by_length(base: Base, memory_set: MemorySet, lengths: Sequence[int]) -> dict[int, tuple[EncodedFact, ...]]:
    """Requested length -> the most facts that together have at most so many target tokens. Raises DataError."""
    from memlaw.data import check_context, encode, take

    encoded = encode(memory_set, base.tokenizer, context=None, stops=base.stops)
    prefixes = {length: take(encoded, length) for length in lengths}
    if base.context is not None:
        check_context(itertools.chain.from_iterable(prefixes.values()), base.context)
    return prefixes
