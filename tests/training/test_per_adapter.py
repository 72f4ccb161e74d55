from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.config import TrainConfig
from memlaw.core.recall import LN2
from memlaw.training.per_adapter import PerAdapter

ALL = torch.tensor([1.0, 1.0], dtype=torch.float64)


def of(*configs: TrainConfig) -> PerAdapter:
    return PerAdapter.from_configs(configs, "cpu")


def test_the_published_schedule_falls_linearly_to_zero_without_warm_up() -> None:
    config = TrainConfig(steps=4, learning_rate=1.0)
    settings = of(config, replace(config, schedule="constant", learning_rate=0.5))
    rates = [settings.learning_rates(step, ALL).tolist() for step in range(5)]
    assert rates == [[1 - step / 4, 0.5] for step in range(5)]


def test_a_rate_by_share_follows_the_work_that_is_left_and_not_the_budget() -> None:
    short = TrainConfig(steps=4, learning_rate=2.0, schedule="share")
    settings = of(short, replace(short, steps=4000))
    assert settings.learning_rates(3, ALL).tolist() == [2.0, 2.0]
    assert settings.learning_rates(3, ALL / 4).tolist() == [1.0, 1.0]
    assert settings.learning_rates(0, 0 * ALL).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("exponent", [1, 8])
def test_an_average_counts_steps_by_a_power_of_their_number(exponent: int) -> None:
    """p = 1 weighs step t by t exactly; higher p by t (t + 1) ... (t + p - 1)."""
    settings = of(TrainConfig(average=exponent), TrainConfig())
    values = torch.arange(1.0, 31.0, dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64)
    for step, value in enumerate(values.tolist(), start=1):
        mean = torch.lerp(mean, torch.full_like(mean, value), settings.newest(step))
    weights = torch.tensor([math.prod(range(t, t + exponent)) for t in range(1, 31)], dtype=torch.float64)
    assert mean.tolist() == pytest.approx([float((weights * values).sum() / weights.sum()), 30.0])


@given(left=st.floats(0, 1), anneal=st.floats(0.05, 4), margin=st.floats(0, 0.6))
def test_the_limit_of_training_rises_to_the_limit_of_recall_as_the_work_gets_done(
    left: float, anneal: float, margin: float
) -> None:
    settings = of(TrainConfig(margin=margin, anneal=anneal), TrainConfig(margin=margin))
    annealed, plain = settings.training_limit(torch.tensor([left, left], dtype=torch.float64)).tolist()
    assert plain == LN2 - margin
    assert 0 <= annealed <= plain
    assert settings.training_limit(ALL).tolist() == [0.0, plain]
    assert settings.training_limit(0 * ALL).tolist() == [plain, plain]
