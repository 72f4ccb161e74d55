from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import memlaw
from helpers.checks import GOOD, codes, facts, findings_of, the_one
from memlaw.adapter.on_model import placement_on
from memlaw.api import check_on
from memlaw.core.errors import AdapterError, ConfigError
from memlaw.core.facts import Fact, MemorySet
from memlaw.data import encode
from memlaw.model.base import Base, load
from memlaw.planning import default_law
from memlaw.planning.for_facts import plan_for
from memlaw.planning.library import KnownLaw, PlanContext, nearest

LAW = KnownLaw(default_law())


def many(count: int) -> MemorySet:
    """Ten tokens each, the end of sequence among them."""
    return facts(*[(f"key {n:03}:", f"{7919 * n % 10**9:09}") for n in range(count)])


def borrowed(use: PlanContext) -> KnownLaw:
    """The law where nothing nearer is known."""
    return nearest((), use)


def test_a_rank_under_the_laws_interval_is_a_warning_inside_it_a_remark_above_it_nothing() -> None:
    base = load()
    plan = plan_for(base, encode(many(300), base.tokenizer, context=None), placement_on(None, base.model), borrowed)
    assert plan.rank.value is not None
    assert plan.rank.low is not None
    assert 2 <= plan.rank.low < plan.rank.value
    low = the_one(check_on(base, many(300), rank=plan.rank.low - 1), "rank-too-small")
    assert low.severity == "warning"
    assert "At down_proj@4 the law predicts that recalling these 3,000 target tokens needs rank " in low.message
    assert f"needs rank {plan.rank.value} (95%: {plan.rank.low} to" in low.message
    assert f", but the rank is {plan.rank.low - 1}. The law is borrowed" in low.message
    assert f"rank {plan.rank.value} or" in low.fix
    remark = the_one(check_on(base, many(300), rank=plan.rank.value - 1, law=LAW), "rank-too-small")
    assert remark.severity == "info"
    assert not findings_of(check_on(base, many(300), rank=plan.rank.value), "rank-too-small")


def test_a_set_that_no_rank_holds_is_told_with_the_ways_out(base: Base) -> None:
    finding = the_one(check_on(base, many(600), rank=16, placement="k_proj@3"), "no-rank-fits")
    assert finding.severity == "warning"
    assert "No rank up to 16" in finding.message
    assert "split" in finding.fix


def test_a_set_that_the_law_only_doubts_is_a_remark(base: Base) -> None:
    where = placement_on("k_proj@3", base.model)
    plan = plan_for(base, encode(many(3), base.tokenizer, context=None), where, borrowed)
    assert plan.rank.value is None
    assert plan.rank.low is not None
    assert 1 < plan.rank.low < 16
    for rank, severity in ((plan.rank.low, "info"), (plan.rank.low - 1, "warning")):
        finding = the_one(check_on(base, many(3), rank=rank, placement="k_proj@3"), "no-rank-fits")
        assert finding.severity == severity


def test_the_rank_of_an_adapter_is_judged_at_its_placement(base: Base, tmp_path: Path) -> None:
    once = {"rank": 1, "steps": 2, "until": "budget", "placement": "all-linear"}
    memlaw.train(base.model, base.tokenizer, many(40), out=tmp_path / "A", **once)
    report = check_on(base, many(40), adapter=tmp_path / "A", law=LAW)
    assert "At all-linear" in the_one(report, "rank-too-small").message


def test_an_impossible_rank_is_refused(base: Base) -> None:
    with pytest.raises(AdapterError, match="Rank 33 is above 32"):
        check_on(base, facts(*GOOD), rank=33)


def test_a_law_without_a_rank_to_judge_is_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match="A law needs a rank to judge"):
        check_on(base, facts(*GOOD), law=LAW)


def test_facts_beyond_the_context_do_not_keep_the_rank_from_being_judged(base: Base) -> None:
    with_long = replace(many(60), facts=(*many(60).facts, Fact("long", "x" * 300, "long")))
    report = check_on(base, with_long, rank=1)
    assert {"too-long", "no-rank-fits"} <= codes(report)
    assert "600 target tokens" in the_one(report, "no-rank-fits").message
