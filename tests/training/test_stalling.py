"""A training that follows the work left ends when it comes no closer, and not before."""

from __future__ import annotations

from dataclasses import replace

import torch

from helpers import tiny
from helpers.runs import runs_at
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.facts import EncodedFact
from memlaw.training.result import StackProgress
from memlaw.training.stack import train_stack
from memlaw.training.stalling import HALF_LIFE, PATIENCE, SHORT_HALF_LIFE, Fewest, halving, stalled

BY_SHARE = replace(UNTIL_RECALLED, learning_rate=0.05, protect=0.0)


def test_only_fewer_tokens_count_as_coming_closer() -> None:
    fewest = Fewest()
    for step, left in enumerate([1.0, 0.5, 0.5, 0.7, 0.4, 0.4]):
        fewest = fewest.after(left, step)
    assert fewest == Fewest(0.4, 4)


def test_protection_halves_slowly_while_facts_come_closer_and_fast_once_they_do_not() -> None:
    closer = [halving(Fewest(0.5, step), step) for step in range(HALF_LIFE)]
    assert sum(closer) == 1
    stuck = [halving(Fewest(0.5, 100), step) for step in range(100, 100 + 2 * SHORT_HALF_LIFE)]
    assert sum(stuck[:SHORT_HALF_LIFE]) == SHORT_HALF_LIFE / HALF_LIFE
    assert sum(stuck[SHORT_HALF_LIFE:]) == 1


def test_patience_grows_with_the_steps_taken() -> None:
    assert stalled([Fewest(0.5, 0)], PATIENCE - 1, [BY_SHARE]) == []
    assert stalled([Fewest(0.5, 0), Fewest(0.1, 1)], PATIENCE, [BY_SHARE, BY_SHARE]) == [0]
    assert stalled([Fewest(0.5, 2001)], 4000, [BY_SHARE]) == []
    assert stalled([Fewest(0.5, 2000)], 4000, [BY_SHARE]) == [0]


def test_budgets_and_rates_that_fall_with_them_run_to_their_end() -> None:
    others = [replace(BY_SHARE, until="budget"), replace(BY_SHARE, schedule="linear")]
    assert stalled([Fewest(), Fewest()], 9000, others) == []


def test_facts_that_cannot_all_be_recalled_end_a_training_long_before_its_limit() -> None:
    """The same prompt with two answers: one token never comes back."""
    base = tiny.base()
    facts = [EncodedFact("a", (5, 6, 7, 11), 3), EncodedFact("b", (5, 6, 7, 12), 3)]
    seen: list[StackProgress] = []
    (trained,) = train_stack(
        base, facts, runs_at(placement_on(None, base.model), [(2, BY_SHARE)]), on_step=seen.append
    )  # fmt: skip
    assert (trained.status, trained.recalled) == ("finished", False)
    assert PATIENCE <= trained.steps < 2 * PATIENCE
    with trained.attached(base.model), torch.no_grad():
        p = base.model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    assert float(p[11] + p[12]) > 0.5
