"""Cells: their identity, their families, and their way to JSON and back."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.cells import Cell, CellResult, families
from memlaw.core.config import TrainConfig

CELL = Cell(
    model="m" * 64,
    tokenizer="t" * 64,
    data="d" * 64,
    placement="mlp@L",
    rank=2,
    length=20,
    train=TrainConfig(),
    dtype="float32",
    libraries="torch 2.9",
    device="cpu",
)

OTHER_CELLS: dict[str, Any] = {
    "model": "n" * 64,
    "tokenizer": "u" * 64,
    "data": "e" * 64,
    "placement": "mlp@0",
    "dtype": "bfloat16",
    "algorithm": 1,
    "libraries": "torch 2.10",
    "device": "cuda",
}

OTHER_TRAININGS: dict[str, Any] = {
    "method": "ot",
    "steps": 20,
    "learning_rate": 1e-3,
    "rule": "fallback",
    "margin": 0.1,
    "position": 1.0,
    "focus": 1.0,
    "until": "recalled",
    "boundaries": (1, 2, 3, 4, 5),
    "schedule": "constant",
    "batch_size": 4,
    "clip": 0.0,
    "weight_decay": 0.1,
    "dropout": 0.1,
    "scale": 1.0,
    "scaling": "lora",
    "init": "paper",
}


def result_of(cell: Cell) -> CellResult:
    numbers: dict[str, Any] = {
        "loss_init": 3.0,
        "loss_final": 0.5,
        "delta_loss": 2.5,
        "acc_token": 0.9,
        "acc_em": 0.5,
        "ordered": 18,
        "certified": 1,
    }
    return CellResult(cell, "finished", steps=1000, parameters=1024, records=2, **numbers)


BASES = [CELL]
BASES += [replace(CELL, **{name: value}) for name, value in OTHER_CELLS.items()]
BASES += [replace(CELL, train=replace(CELL.train, **{name: value})) for name, value in OTHER_TRAININGS.items()]


def test_every_field_but_rank_length_and_seed_is_varied_here():
    assert set(OTHER_CELLS) | {"rank", "length", "train"} == set(Cell.__dataclass_fields__)
    assert set(OTHER_TRAININGS) | {"seed"} == set(TrainConfig.__dataclass_fields__)


@given(
    st.lists(
        st.tuples(st.integers(0, len(BASES) - 1), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)), unique=True
    )
)
def test_a_family_holds_the_cells_that_differ_in_rank_length_and_seed_alone(places):
    results = [
        result_of(replace(BASES[base], rank=rank, length=length, train=replace(BASES[base].train, seed=seed)))
        for base, rank, length, seed in places
    ]
    expected = [
        [
            (base, *place)
            for place in sorted((length, rank, seed) for other, rank, length, seed in places if other == base)
        ]
        for base in dict.fromkeys(base for base, *_ in places)
    ]
    base_of = {result.cell.key: base for result, (base, *_) in zip(results, places, strict=True)}
    assert [
        [(base_of[r.cell.key], r.cell.length, r.cell.rank, r.cell.train.seed) for r in members]
        for members in families(results)
    ] == expected
