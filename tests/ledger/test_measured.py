"""A version beside its base: facts that come back, targets that must not, and harm."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest

from helpers import slow_training as reference
from helpers import tiny
from helpers.ledgers import SETTINGS
from memlaw.adapter.on_model import placement_on
from memlaw.core.config import TrainConfig
from memlaw.core.errors import DataError, LedgerError
from memlaw.core.facts import EncodedFact, Fact
from memlaw.ledger.measured import bench, check_base, measured
from memlaw.model.base import Base
from memlaw.model.tokenizer import tokenizer_fingerprint
from memlaw.training.result import Trained
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

STORED, OLD = Fact("Code a: ", "K7Q2", "a"), Fact("Code a: ", "K7X", "a")
GONE = Fact("Code b: ", "M3", "b")


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base(max_position_embeddings=32)


@pytest.fixture(scope="module")
def trained(base: Base) -> Trained:
    """An adapter that has stored `STORED` and `GONE`."""
    facts = bench(base, [STORED, GONE], [], True, harm=False).wanted
    config = TrainConfig(method="ot", until="recalled", margin=0.1, steps=300, learning_rate=2e-2)
    (one,) = train_stack(base, facts, [Run(8, placement_on("down_proj@1-3", base.model), config)])
    assert one.recalled
    return one


def log_p(base: Base, fact: EncodedFact) -> float:
    return -float(reference.nll_of(base.model, fact).detach().sum())


def test_everything_that_the_gate_asks_is_measured_with_and_without_the_adapter(base: Base, trained: Trained) -> None:
    on = bench(base, [STORED], [OLD, GONE], True, harm=True)
    assert [len(fact.ids) for fact in (*on.wanted, *on.unwanted)] == [13, 12, 11]
    assert on.tokens == 36
    found = measured(base, on, partial(trained.attached, base.model))
    assert found.report is not None
    assert found.side_effects is not None
    assert [(item.id, item.certified) for item in found.report.items] == [("a", True)]
    old, gone = found.gone
    assert [old.log_p_base, gone.log_p_base] == pytest.approx([log_p(base, fact) for fact in on.unwanted], rel=1e-4)
    with trained.attached(base.model):
        assert [old.log_p, gone.log_p] == pytest.approx([log_p(base, fact) for fact in on.unwanted], rel=1e-3)
    assert (gone.decoded, gone.decoded_base, gone.holds) == (True, False, False)
    assert not old.decoded
    assert old.rise < old.log_p - old.log_p_base, "of the old target only what follows K7 counts"


def test_without_facts_or_adapter_nothing_is_left_to_judge(base: Base) -> None:
    on = bench(base, [], [GONE], True, harm=True)
    found = measured(base, on, nullcontext)
    assert (found.report, found.side_effects) == (None, None)
    (gone,) = found.gone
    assert (gone.rise, gone.log_p, gone.holds) == (0.0, gone.log_p_base, True)
    assert measured(base, bench(base, [], [], True, harm=True), nullcontext).gone == ()


def test_harm_is_measured_only_if_asked(base: Base) -> None:
    assert bench(base, [STORED], [], True, harm=False).alone is None


def test_a_prompt_may_have_had_several_targets_but_has_one_now(base: Base) -> None:
    assert len(bench(base, [STORED], [OLD, replace(OLD, target="Z")], True, harm=False).unwanted) == 2
    with pytest.raises(DataError, match="the same 8 tokens"):
        bench(base, [STORED, OLD], [], True, harm=False)


def test_a_ledger_is_of_one_base_and_one_tokenizer(base: Base) -> None:
    settings = replace(
        SETTINGS, model="tiny-qwen3", base=base.fingerprint, tokenizer=tokenizer_fingerprint(base.tokenizer)
    )
    check_base(base, settings)
    with pytest.raises(LedgerError, match="made for another base model: its adapters belong to tiny-qwen3"):
        check_base(tiny.base(seed=1), settings)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<more>"])
    with pytest.raises(LedgerError, match="made for another tokenizer"):
        check_base(replace(base, tokenizer=tokenizer), settings)
