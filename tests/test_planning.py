"""A plan for facts on a model: everything the mathematics is given was measured on that model."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from memlaw.adapter import parse_placement
from memlaw.data import target_tokens
from memlaw.errors import ConfigError
from memlaw.law import fit_law
from memlaw.measure import measure
from memlaw.plan import default_law
from memlaw.planning import plan_for, training_work
from memlaw.records import LawPoint
from memlaw.training import UNTIL_RECALLED
from memlaw.workspace import KnownLaw

BASE = tiny.base()
FACTS = tiny.facts([(5, 4), (3, 7), (6, 2)])


def cells() -> list[LawPoint]:
    found = []
    for rank in (1, 2, 4, 8, 16):
        for length in (4, 8, 16, 32):
            gain = 9.0 * rank**0.4 * length**-0.5 * (1 + 0.01 * (-1) ** (rank + length // 4))
            found.append(LawPoint(rank, length, gain, 20.0 - gain))
    return found


KNOWN = KnownLaw(fit_law(cells(), "paper", source="cells"))


def test_a_plan_measures_the_facts_on_the_base_and_trains_nothing() -> None:
    before = BASE.fingerprint
    answer = plan_for(BASE, FACTS, parse_placement("down_proj@2", BASE.model), KNOWN)
    assert (answer.records, answer.tokens) == (3, 13)
    assert answer.loss_init == measure(BASE, FACTS, decode=False).mean_loss
    assert answer.largest_rank == 32
    assert tiny.wrap(BASE.model, BASE.tokenizer).fingerprint == before


def test_the_config_has_the_scale_that_memlaw_trains_with() -> None:
    answer = plan_for(BASE, FACTS, parse_placement("down_proj@2", BASE.model), KNOWN)
    assert answer.lora_config is not None
    assert answer.lora_config["lora_alpha"] == UNTIL_RECALLED.scale * answer.lora_config["r"]
    assert answer.lora_config["layers_to_transform"] == [2]


def test_cells_of_the_facts_say_which_loss_recall_needs() -> None:
    placement = parse_placement("down_proj@2", BASE.model)
    strict = dataclasses.replace(KNOWN, observed=((0.2, 1.0), (0.9, 0.4)))
    assert plan_for(BASE, FACTS, placement, strict).loss_needed.nats == 0.2
    lax = plan_for(BASE, FACTS, placement, strict, target=0.4)
    assert lax.loss_needed.nats == 0.9
    assert lax.target == 0.4


def test_a_borrowed_law_compares_parameters_and_says_so() -> None:
    answer = plan_for(BASE, FACTS, parse_placement("down_proj@2", BASE.model), KnownLaw(default_law()))
    assert answer.law.axis == "parameters"
    assert any(caveat.startswith("Borrowed") for caveat in answer.caveats)


@pytest.mark.parametrize("placement", ["down_proj@0", "q_proj@1-2", "mlp@3"])
def test_the_work_counts_the_layers_above_the_adapter_the_head_and_the_tokens_of_a_step(placement: str) -> None:
    where = parse_placement(placement, BASE.model)
    work = training_work(BASE, FACTS, where)
    layers = BASE.model.model.layers
    expected = sum(p.numel() for at in range(where.first_layer, len(layers)) for p in layers[at].parameters())
    assert work.suffix_parameters == expected + BASE.model.lm_head.weight.numel()
    assert work.steps == UNTIL_RECALLED.steps
    assert work.tokens_per_step == target_tokens(FACTS) + 5 + 3 + 6  # a step has more room than there are facts


def test_the_work_of_many_facts_is_that_of_a_batch_of_them() -> None:
    many = tiny.facts([(4, 6)] * (3 * UNTIL_RECALLED.batch_size))
    work = training_work(BASE, many, parse_placement("down_proj@2", BASE.model))
    assert work.tokens_per_step == 10 * UNTIL_RECALLED.batch_size


def test_an_impossible_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="target is 0"):
        plan_for(BASE, FACTS, parse_placement("down_proj@2", BASE.model), KNOWN, target=0)
