"""Cells: keys, families, and JSON."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.canonical import canonical_json, to_dict
from memlaw.core.cells import Cell, CellResult, families, result_from_dict
from memlaw.core.config import TrainConfig
from memlaw.core.errors import ConfigError

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
    "optimizer": "muon",
    "momentum": 0.95,
    "average": 8,
    "anneal": 0.25,
    "protect": 1.0,
    "rehearse": 4,
    "served_as": ("q4_0",),
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
    assert set(OTHER_CELLS) | {"rank", "length", "train"} == {field.name for field in fields(Cell)}
    assert set(OTHER_TRAININGS) | {"seed"} == {field.name for field in fields(TrainConfig)}


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


OTHER = Cell(
    model="a" * 64,
    tokenizer="b" * 64,
    data="c" * 64,
    placement="q_proj+v_proj@0+3",
    rank=8,
    length=300,
    train=TrainConfig(
        method="curriculum",
        seed=7,
        steps=2000,
        learning_rate=0.01,
        margin=0.1,
        position=2.0,
        focus=0.5,
        rule="fallback",
        until="recalled",
        boundaries=(30, 60, 90, 120, 350),
        schedule="constant",
        batch_size=16,
        clip=0.5,
        weight_decay=0.01,
        dropout=0.1,
        scale=1.0,
        scaling="rslora",
        init="paper",
    ),
    dtype="bfloat16",
    libraries="torch 2.9",
    device="cuda",
)

KEYS = {
    CELL: "5d6c95c0401e1bb42f3ed04d01f240ab95c426644e2043679d773b900732d640",
    OTHER: "278eccca8b14115a9b1170b70f1094fbf08492de9fcb1529ee398dfe8351bc51",
}
"""As computed by memlaw 0.1.0 before its modules moved."""


def test_keys_are_those_of_the_code_before_the_move() -> None:
    assert {cell: cell.key for cell in KEYS} == KEYS


def test_cells_and_results_come_back_from_json_with_their_keys() -> None:
    for cell, key in KEYS.items():
        read = result_from_dict(json.loads(canonical_json(to_dict(result_of(cell))))).cell
        assert (read, read.key) == (cell, key)
        for result in (result_of(cell), replace(result_of(cell), status="failed", loss_final=None, message="why")):
            again = result_from_dict(json.loads(canonical_json(to_dict(result))))
            assert again == result
            assert canonical_json(to_dict(again)) == canonical_json(to_dict(result))


def test_a_result_without_the_fields_that_came_later_is_read() -> None:
    values = to_dict(result_of(CELL))
    for name in ("message", "loss_memoryless", "certified_tokens"):
        del values[name]
    assert result_from_dict(values) == result_of(CELL)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"status": "bored"}, "status: Input should be 'finished', 'diverged' or 'failed'"),
        ({"steps": "9"}, "steps: Input should be a valid integer"),
        ({"speed": 3}, "speed: Unexpected keyword argument"),
        ({"cell": {**to_dict(CELL), "rank": 1.5}}, "cell.rank: Input should be a valid integer"),
        ({"cell": {**to_dict(CELL), "train": {"method": "dft"}}}, "cell.train.method: Input should be 'sft', 'ot'"),
        ({"cell": {**to_dict(CELL), "train": {"warm_up": 1}}}, "cell.train.warm_up: Unexpected keyword argument"),
    ],
)
def test_anything_else_than_a_result_is_refused(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        result_from_dict({**to_dict(result_of(CELL)), **change})
    assert f"({fault}" in str(caught.value)
    assert "Read them with the version that wrote them." in str(caught.value)


def test_a_missing_field_is_named() -> None:
    values = to_dict(result_of(CELL))
    del values["cell"]["placement"]
    with pytest.raises(
        ConfigError, match=r"These values are not a CellResult of .* \(cell.placement: Field required\)"
    ):
        result_from_dict(values)
