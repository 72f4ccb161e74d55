from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import tiny
from helpers.words import words
from memlaw.adapter.on_model import placement_on
from memlaw.cli.train import train_lines
from memlaw.core.config import TrainConfig
from memlaw.training.result import Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack


def trained(**settings: Any) -> Trained:
    base, facts = tiny.base(), tiny.facts([(5, 2)])
    [result] = train_stack(base, facts, [Run(4, placement_on(None, base.model), TrainConfig(**settings))])
    return result


def test_a_training_says_how_it_ended() -> None:
    result = trained(steps=400, until="recalled", margin=0.1)
    told = words(train_lines(result, Path("A")))
    assert told.startswith("A: rank 4 at down_proj@2, 320 parameters. ")
    assert f"{result.steps} steps in " in told
    assert told.endswith("nats a token; every target token is ordered by 0.1 nats or more.")
    assert words(train_lines(trained(steps=400), Path("A"))).endswith("; every target token is ordered.")
    assert words(train_lines(trained(steps=1), Path("A"))).endswith("; some target tokens are still stubborn.")
