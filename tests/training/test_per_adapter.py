from __future__ import annotations

from dataclasses import replace

import pytest

from memlaw.core.config import TrainConfig
from memlaw.training.per_adapter import HALVINGS, PerAdapter


def test_the_published_schedule_falls_linearly_to_zero_without_warm_up() -> None:
    config = TrainConfig(steps=4, learning_rate=1.0)
    settings = PerAdapter.from_configs([config, replace(config, schedule="constant", learning_rate=0.5)], "cpu")
    assert [settings.learning_rates(step).tolist() for step in range(5)] == [[1 - step / 4, 0.5] for step in range(5)]


def test_a_late_rate_replaces_the_first_at_half_of_the_steps_and_falls_to_zero_with_the_last() -> None:
    config = TrainConfig(steps=4, learning_rate=1.0, late_rate=8.0)
    settings = PerAdapter.from_configs([config, replace(config, schedule="constant")], "cpu")
    assert [settings.learning_rates(step).tolist() for step in range(5)] == [
        [1.0, 1.0],
        [0.75, 1.0],
        [8.0, 8.0],
        [4.0, 8.0],
        [0.0, 8.0],
    ]


def test_the_weight_of_protection_halves_as_often_whatever_the_budget() -> None:
    settings = PerAdapter.from_configs([TrainConfig(steps=300, protect=8.0), TrainConfig(steps=300)], "cpu")
    assert settings.protections(0).tolist() == [8.0, 0.0]
    assert settings.protections(300 // HALVINGS).tolist() == pytest.approx([4.0, 0.0])
    assert settings.protections(300).tolist() == pytest.approx([8.0 * 2.0**-HALVINGS, 0.0])
