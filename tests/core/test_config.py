from __future__ import annotations

from typing import Any

import pytest

import memlaw
from memlaw.core.canonical import to_dict
from memlaw.core.config import TrainConfig
from memlaw.core.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("method", "dft", "sft, ot, sw or curriculum"),
        ("rule", "none", "zero or fallback"),
        ("until", "bored", "budget or recalled"),
        ("schedule", "cosine", "linear, constant or share"),
        ("init", "zeros", "peft or paper"),
        ("optimizer", "moun", "adamw or muon. Did you mean muon?"),
        ("optimizer", "adamax", "adamw or muon. Did you mean adamw?"),
        ("optimizer", "soap", "adamw or muon."),
        ("steps", 1.5, "a whole number from 1 up"),
        ("steps", True, "a whole number from 1 up"),
        ("steps", "9", "a whole number from 1 up"),
        ("margin", 0.7, "nats from 0 to below ln 2 (0.693), since no loss is below 0"),
        ("margin", float("nan"), "nats from 0"),
        ("position", -1.0, "a number above 0 (published: 2), or 0 to turn it off"),
        ("position", float("inf"), "a number above 0"),
        ("focus", float("nan"), "a number above 0, or 0 to turn it off"),
        ("boundaries", (20, 40, 60, 80), "5 increasing whole numbers of epochs, one for each share of the curriculum"),
        ("boundaries", (20, 40, 40, 80, 300), "5 increasing whole numbers"),
        ("boundaries", (0, 40, 60, 80, 300), "5 increasing whole numbers"),
        ("boundaries", (20.0, 40, 60, 80, 300), "5 increasing whole numbers"),
        ("boundaries", 300, "5 increasing whole numbers"),
        ("learning_rate", -1, "a number above 0, or 0 to have it chosen"),
        ("learning_rate", float("inf"), "a number above 0, or 0 to have it chosen"),
        ("learning_rate", "fast", "a number above 0, or 0 to have it chosen"),
        ("batch_size", -1, "a whole number of records from 1 up, or 0 for all of them"),
        ("clip", -1.0, "a gradient norm above 0, or 0 for no clipping"),
        ("weight_decay", -1e-9, "a number from 0 up"),
        ("dropout", 1.0, "a share from 0 to below 1"),
        ("scale", 0.0, "a number above 0"),
        ("seed", -1, "a whole number from 0 to 4294967295"),
        ("seed", 2**32, "a whole number from 0 to 4294967295"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_range(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: value})
    assert str(caught.value).startswith(f"Setting {name} is {value!r}: choose {wanted}")


def test_the_edges_of_every_range_are_allowed() -> None:
    TrainConfig(
        steps=1, margin=0.0, batch_size=0, clip=0.0, weight_decay=0.0, dropout=0.0, seed=0, learning_rate=1e-300
    )
    TrainConfig(margin=0.693, dropout=0.999, seed=2**32 - 1, learning_rate=1, scale=1)
    TrainConfig(position=0.0, focus=0, boundaries=(1, 2, 3, 4, 5))


def test_settings_come_back_from_json() -> None:
    config = TrainConfig(method="curriculum", boundaries=(30, 60, 90, 120, 350))
    assert TrainConfig(**to_dict(config)) == config
    assert hash(TrainConfig(**to_dict(config))) == hash(config)


def test_minutes_between_checkpoints_are_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"Setting checkpoint_minutes is -1: choose minutes from 0 up\."):
        memlaw.Execution(checkpoint_minutes=-1)
