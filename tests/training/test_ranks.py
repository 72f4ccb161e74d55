"""More rank is never worse: with the default training, the steps until recalled do not grow with the rank."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from helpers.commands import OFFICIAL
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import UNTIL_RECALLED, TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.data import encode, read
from memlaw.model.base import Base, load
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

RECORDS = 8
"""Phone numbers, 88 target tokens: rank 4 still holds them, and all ranks together train in ten seconds."""

TOLERANCE = 1.1
"""Machines and versions differ by a percent or two, seeds at one rank by up to about a tenth; what doubles the rank and
costs more than that is a fault of the step size."""

DEFAULT = replace(UNTIL_RECALLED, protect=0.0, steps=1000)


@pytest.fixture(scope="module")
def base() -> Base:
    return load("memlaw/base", dtype="float32")


@pytest.fixture(scope="module")
def phone_numbers(base: Base) -> tuple[EncodedFact, ...]:
    few = read(OFFICIAL, tokenizer=base.tokenizer)
    facts = replace(few, facts=few.facts[:RECORDS])
    return encode(facts, base.tokenizer, context=base.context, stops=base.stops)


def steps_at(ranks: Sequence[int], config: TrainConfig, base: Base, facts: Sequence[EncodedFact]) -> dict[int, float]:
    """Steps until all is recalled, by rank; infinitely many where it never is. One training a rank, not a stack."""
    steps = {}
    for rank in ranks:
        (trained,) = train_stack(base, facts, [Run(rank, placement_on(None, base.model), config)])
        steps[rank] = trained.steps if trained.recalled else float("inf")
    return steps


def worse(steps: Mapping[int, float]) -> list[tuple[int, int]]:
    """Pairs of ranks of which the higher takes notably more steps."""
    return [
        (low, high) for low, high in itertools.combinations(sorted(steps), 2) if steps[high] > TOLERANCE * steps[low]
    ]


@pytest.mark.slow
def test_more_rank_is_never_worse(base: Base, phone_numbers: tuple[EncodedFact, ...]) -> None:
    steps = steps_at((4, 8, 16, 64, 160), DEFAULT, base, phone_numbers)
    assert all(count < DEFAULT.steps for count in steps.values()), steps
    assert worse(steps) == [], steps


@pytest.mark.slow
def test_adamw_at_one_rate_is_worse_with_more_rank(base: Base, phone_numbers: tuple[EncodedFact, ...]) -> None:
    """Proof that these facts and this tolerance can tell: each weight moves by the rate, so more rank moves further."""
    config = replace(DEFAULT, optimizer="adamw", learning_rate=5e-2)
    assert worse(steps_at((16, 160), config, base, phone_numbers)) == [(16, 160)]
