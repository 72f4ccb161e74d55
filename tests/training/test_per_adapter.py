from __future__ import annotations

from dataclasses import replace

from memlaw.core.config import TrainConfig
from memlaw.training.per_adapter import PerAdapter


def test_the_published_schedule_falls_linearly_to_zero_without_warm_up() -> None:
    config = TrainConfig(steps=4, learning_rate=1.0)
    settings = PerAdapter.from_configs([config, replace(config, schedule="constant", learning_rate=0.5)], "cpu")
    assert [settings.learning_rates(step).tolist() for step in range(5)] == [[1 - step / 4, 0.5] for step in range(5)]
