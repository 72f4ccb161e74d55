"""A training whose loss ends clearly above its start has diverged; one whose loss is a good one has not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import slow_training as reference
from helpers import tiny
from helpers.runs import runs_at
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import UNTIL_RECALLED, TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.core.recall import LN2
from memlaw.training.checkpoint import Checkpoint
from memlaw.training.divergence import PATIENCE, is_risen, out_of_patience, risen_in_a_row, why_diverged
from memlaw.training.result import StackProgress, Trained
from memlaw.training.stack import train_stack

FAR_TOO_HIGH = TrainConfig(steps=300, learning_rate=30.0, method="ot", until="recalled", batch_size=2, clip=0.0)
GOOD = replace(FAR_TOO_HIGH, learning_rate=2e-3)


def known_facts() -> list[EncodedFact]:
    """Facts of which the tiny base knows all tokens but one, so that its loss is low and has room to rise."""
    facts = []
    for prompt in ([5, 6, 7], [20, 31, 9], [44, 4], [60, 61, 62]):
        target = reference.greedy(tiny.model(), prompt, 5)
        target[-1] = 3 + target[-1] % 50
        facts.append(EncodedFact(f"f{prompt[0]}", (*prompt, *target), len(prompt)))
    return facts


def train(*configs: TrainConfig, facts: list[EncodedFact] | None = None, **options: object) -> list[Trained]:
    base = tiny.base()
    runs = runs_at(placement_on("all-linear", base.model), [(2, config) for config in configs])
    return train_stack(base, facts or known_facts(), runs, **options)  # type: ignore[arg-type]


def mean_loss(trained: Trained) -> float:
    model = tiny.base().model
    with trained.attached(model), torch.no_grad():
        return float(torch.cat([reference.nll_of(model, fact) for fact in known_facts()]).mean())


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "muon"}, {"optimizer": "muon", "schedule": "share", "average": 8, "anneal": 0.25}]
)
def test_a_loss_that_stays_above_its_start_is_divergence_and_ends_the_run_early(changes: dict[str, Any]) -> None:
    (wild,) = train(replace(FAR_TOO_HIGH, **changes))
    assert (wild.status, wild.loss_final, wild.recalled) == ("diverged", None, False)
    assert PATIENCE <= wild.steps < FAR_TOO_HIGH.steps
    after = mean_loss(wild)
    assert after > wild.loss_init + LN2
    assert f"from {wild.loss_init:.3g} to {after:.3g} nats" in wild.message
    assert "use a lower learning rate, a quarter of 30 (7.5) or less" in wild.message


def test_a_budget_is_judged_at_its_end_alone() -> None:
    (wild,) = train(replace(FAR_TOO_HIGH, until="budget"))
    assert (wild.status, wild.steps) == ("diverged", FAR_TOO_HIGH.steps)


def test_the_others_of_the_stack_get_what_they_get_alone() -> None:
    (alone,) = train(GOOD)
    wild, good = train(FAR_TOO_HIGH, GOOD)
    assert (wild.status, good.status) == ("diverged", "finished")
    assert (good.steps, good.recalled) == (alone.steps, alone.recalled)
    assert good.loss_final == pytest.approx(alone.loss_final, rel=1e-4)


def test_patience_survives_an_interruption(tmp_path: Path) -> None:
    class Interrupted(Exception):  # noqa: N818
        pass

    def stop(progress: StackProgress) -> None:
        if progress.step == 60:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(FAR_TOO_HIGH, checkpoint=Checkpoint(tmp_path / "c", minutes=0), on_step=stop)
    (resumed,) = train(FAR_TOO_HIGH, checkpoint=Checkpoint(tmp_path / "c", minutes=0))
    (whole,) = train(FAR_TOO_HIGH)
    assert (resumed.steps, resumed.message) == (whole.steps, whole.message)


def test_a_rise_that_the_method_allows_is_none() -> None:
    """ot leaves recalled tokens alone: all of them may climb from 0 to ln 2, and every fact still comes back."""
    assert not is_risen(LN2, 0.0)
    assert is_risen(LN2 + 0.01, 0.0)
    assert not is_risen(float("nan"), 0.0)


def test_steps_in_a_row_start_again_after_one_that_is_not_risen() -> None:
    losses, starts = torch.tensor([9.0, 9.0, 4.0, 4.0]), [4.0, 4.0, 4.0, 1.0]
    assert risen_in_a_row((0, 5, 7, 2), losses, starts) == (1, 6, 0, 3)


def test_harder_records_of_a_step_are_no_divergence() -> None:
    """The records of one step may be harder than all together: after every patience, all are evaluated; a training
    that passes goes on for as long again."""
    config = replace(UNTIL_RECALLED, steps=500)
    found = [n for n in range(4 * PATIENCE) if out_of_patience([n], [config])]
    assert found == [PATIENCE, 2 * PATIENCE, 3 * PATIENCE]
    assert out_of_patience([PATIENCE], [replace(config, until="budget")]) == []


def test_slow_learning_of_records_harder_than_the_mean_goes_on() -> None:
    """The curriculum shows the first records alone, here the one whose loss is far above the mean of all."""
    hard = EncodedFact("hard", (5, 6, 7, 90, 80, 70, 60, 50), 3)
    slow = TrainConfig(steps=250, learning_rate=1e-7, method="curriculum", until="recalled")
    (trained,) = train(slow, facts=[hard, *known_facts()])
    assert (trained.status, trained.steps) == ("finished", 250)


def test_a_good_run_has_no_reason_to_be_called_diverged() -> None:
    assert why_diverged((4.7, 0.3), 80, UNTIL_RECALLED) == ""
    assert why_diverged((4.7, 4.9), 80, UNTIL_RECALLED) == ""
    assert "no longer a finite number at step 7" in why_diverged((4.7, float("nan")), 7, UNTIL_RECALLED)
