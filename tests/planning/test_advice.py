"""Scale or refine: situations of every kind made on the bundled base, where the advice, once followed, works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memlaw
from helpers import sample
from helpers.paths import FIXTURES, ROOT
from memlaw.adapter.on_model import placement_on
from memlaw.api import check
from memlaw.core.config import ADAMW, AUTO, TrainConfig
from memlaw.core.facts import Fact, MemorySet
from memlaw.core.precision import LARGEST_MARGIN, MARGINS, Precision
from memlaw.core.recall import RecallReport
from memlaw.data import encode
from memlaw.diagnosis.findings import Finding
from memlaw.model.base import Base, load
from memlaw.planning import MeasuredSet, Plan, RankRange, default_law, plan
from memlaw.planning.advice import Advice, History
from memlaw.planning.advice import advise as advise_by_history
from memlaw.planning.for_facts import plan_for
from memlaw.planning.library import KnownLaw, adapt_law
from memlaw.sweep.laws import known_law

DATA = FIXTURES

FACTS = memlaw.read(ROOT / "examples" / "facts.jsonl")

BORROWED = KnownLaw(default_law())

BY_BUDGET = replace(ADAMW, learning_rate=2e-2, protect=0.0)
"""Whose steps may be too few: a rate that follows the budget."""

OWN = known_law(DATA / "facts_law.json")
"""Of the bundled base: 20 cells of random tokens, C and b refitted to 6 cells of these facts, all of 200 steps."""


@pytest.fixture(scope="module")
def base() -> Base:
    return load()


@dataclass(frozen=True)
class Trained:
    """A training, its recall, and what `advise` may be told of it."""

    report: RecallReport
    history: History

    @property
    def recalled(self) -> bool:
        return self.report.certified == self.report.records

    def advice(self, **more: Any) -> tuple[Advice, ...]:
        return advise_by_history(self.report, self.history, **more)


def advise(
    report: RecallReport, *, plan: Plan | None = None, findings: Sequence[Finding] = (), **history: Any
) -> tuple[Advice, ...]:
    """The advice where the adapter's history is what is named, and nothing else."""
    return advise_by_history(report, History(**history), plan=plan, findings=findings)


def trained(base: Base, facts: MemorySet, **settings: Any) -> Trained:
    done = memlaw.train(base.model, base.tokenizer, facts, config=BY_BUDGET, **settings)
    with done.attached(base.model):
        report = memlaw.recall(base.model, base.tokenizer, facts)
    return Trained(report, History(done.rank, str(done.placement), done.config, done.steps, done.curve))


def planned(base: Base, facts: MemorySet, law: KnownLaw, placement: str | None = None) -> Plan:
    encoded = encode(facts, base.tokenizer, context=base.context)
    return plan_for(base, encoded, placement_on(placement, base.model), lambda use: adapt_law(law, use))


def first(count: int, skip: int = 0) -> MemorySet:
    return replace(FACTS, facts=FACTS.facts[skip : skip + count])


def memory_set(*pairs: tuple[str, str]) -> MemorySet:
    return MemorySet(tuple(Fact(q, a, str(n)) for n, (q, a) in enumerate(pairs, start=1)), eos=True, source="test")


def test_a_training_cut_short_is_advised_more_steps_and_they_do(base: Base) -> None:
    short = {"rank": 8, "steps": 80}
    before = trained(base, FACTS, **short)
    assert not before.recalled
    advice = before.advice(plan=planned(base, FACTS, BORROWED))[0]
    assert (advice.lever, advice.settings) == ("steps", {"steps": 160})
    assert "The ordered share was still rising" in advice.evidence
    assert trained(base, FACTS, **short | advice.settings).recalled


def test_a_few_stubborn_tokens_after_sft_are_advised_memft_and_it_does(base: Base) -> None:
    sft = {"rank": 6, "method": "sft", "until": "budget", "steps": 200}
    before = trained(base, FACTS, **sft)
    assert not before.recalled
    assert before.report.tokens - before.report.ordered < 12
    advice = before.advice()[0]
    assert (advice.lever, advice.settings) == ("method", {"method": "ot", "until": "recalled", "margin": 0.1})
    assert "stubborn tokens" in advice.evidence
    assert trained(base, FACTS, **sft | advice.settings).recalled


@pytest.mark.slow
def test_a_rank_under_the_laws_is_advised_more_rank_or_a_split_and_either_does(base: Base) -> None:
    small = {"rank": 4, "steps": 300}
    before = trained(base, FACTS, **small)
    assert not before.recalled
    rank, split, *_ = before.advice(plan=planned(base, FACTS, OWN))
    assert (rank.lever, split.lever) == ("rank", "split")
    assert "The law asks for rank" in rank.evidence
    assert trained(base, FACTS, **small | rank.settings).recalled
    assert "over two adapters of this rank" in split.do
    assert all(trained(base, half, **small).recalled for half in (first(6), first(6, skip=6)))


@pytest.mark.slow
def test_a_low_and_flat_share_is_advised_more_rank_without_any_law_and_it_does(base: Base) -> None:
    small = {"rank": 3, "steps": 300}
    before = trained(base, FACTS, **small)
    advice = before.advice()[0]
    assert (advice.lever, advice.settings) == ("rank", {"rank": 6})
    assert "low and hardly rises" in advice.evidence
    assert trained(base, FACTS, **small | advice.settings).recalled


@pytest.mark.slow
def test_the_last_tokens_of_a_full_adapter_are_advised_more_rank_not_more_of_the_same(base: Base) -> None:
    full = {"rank": 4, "steps": 700}
    before = trained(base, FACTS, **full)
    assert not before.recalled
    advice = before.advice()[0]
    assert (advice.lever, advice.settings) == ("rank", {"rank": 6})
    assert "the adapter is full" in advice.evidence
    assert trained(base, FACTS, **full | advice.settings).recalled


@pytest.mark.slow
def test_modules_that_hold_nothing_at_a_rank_that_should_do_are_advised_another_placement_and_it_does(
    base: Base,
) -> None:
    weak = {"rank": 16, "steps": 200, "placement": "k_proj@5"}
    before = trained(base, first(6), **weak)
    advice = before.advice(plan=planned(base, first(6), BORROWED, "k_proj@5"))[0]
    assert (advice.lever, advice.settings) == ("placement", {"placement": "all-linear"})
    assert "Rank 16 is more than the law asks for" in advice.evidence
    assert trained(base, first(6), **weak | advice.settings | {"learning_rate": AUTO}).recalled  # as `train` does


def test_tokens_the_head_cannot_reach_are_advised_other_words_and_they_do(base: Base) -> None:
    easy = {"rank": 8, "steps": 300}
    tabbed = memory_set(("Row of the table:", " 17\t23"), ("Code of door A:", " 4917"), ("Code of door B:", " 0286"))
    before = trained(base, tabbed, **easy)
    assert not before.recalled
    (advice,) = before.advice(findings=check(base.model, base.tokenizer, tabbed).findings)
    assert advice.lever == "tokens"
    assert "1 stubborn token in 1 record" in advice.evidence
    worded = memory_set(*[(fact.prompt, fact.target.replace("\t", " ")) for fact in tabbed.facts])
    assert trained(base, worded, **easy).recalled


def test_an_end_of_sequence_inside_a_target_is_advised_to_be_taken_out_and_that_does(base: Base) -> None:
    easy = {"rank": 8, "steps": 300}
    ended = memory_set(("Code of door A:", " 4917<|endoftext|>3"), ("Code of door B:", " 0286"))
    before = trained(base, ended, **easy)
    assert before.report.acc_em == 0.5
    (advice,) = before.advice(findings=check(base.model, base.tokenizer, ended).findings)
    assert advice.lever == "data"
    assert "eos-inside" in advice.evidence
    assert "Remove it from the text" in advice.do
    assert trained(
        base, memory_set(*[(f.prompt, f.target.replace("<|endoftext|>", "")) for f in ended.facts]), **easy
    ).recalled


LOW = {f"r{n}": [0.1] * 5 + [2.0] * 5 for n in range(10)}
"""Half of the tokens stubborn, everywhere."""

FEW = {f"r{n}": [0.1] * 9 + [1.0 if n < 4 else 0.1] for n in range(10)}
"""Four records of ten one token short."""

DONE = {f"r{n}": [0.1] * 10 for n in range(10)}

FLAT = [0.5] * 100

RISING = [step / 125 for step in range(100)]


class Module:
    """A placement of one module of width 32."""

    parallel = False
    max_rank = 32

    def parameters(self, rank: int, /) -> int:
        return 64 * rank

    def lora_config(self, rank: int, /, *, scale: float) -> dict[str, Any]:
        return {"r": rank}


def plan_of(value: int | None, low: int | None = None, high: int | None = None) -> Plan:
    """A plan that asks for this rank, or for more than there is."""
    tokens = 20 if value is not None else 100_000
    made = plan(KnownLaw(default_law()), MeasuredSet(records=10, tokens=tokens, loss_init=5.0), Module())
    assert (made.rank.value is None) == (value is None)
    return made if value is None else replace(made, rank=RankRange(value, low, high))


def levers(advice: tuple[Advice, ...]) -> list[str]:
    return [one.lever for one in advice]


def test_nothing_is_advised_where_everything_is_certified() -> None:
    assert advise(sample.recall(DONE)) == ()
    assert advise(sample.recall(DONE, decoded=False), curve=FLAT, rank=1, plan=plan_of(9, 8, 10)) == ()


def test_past_the_laws_capacity_rank_comes_before_steps_and_within_it_after() -> None:
    report, config = sample.recall(LOW), TrainConfig()
    past = advise(report, curve=RISING, plan=plan_of(9, 8, 16), rank=4, config=config)
    assert levers(past) == ["rank", "split", "steps"]
    assert past[0].settings == {"rank": 12}
    assert "rank 9 (95%: 8 to 16); the adapter has 4: 50% of the tokens have p <= 1/2" in past[0].evidence
    within = advise(report, curve=RISING, plan=plan_of(4, 2, 8), rank=4, config=config)
    assert levers(within) == ["steps"]


def test_few_tokens_left_by_sft_speak_louder_than_the_law() -> None:
    few = advise(sample.recall(FEW), curve=FLAT, plan=plan_of(9, 8, 16), rank=4, config=TrainConfig())
    assert levers(few) == ["method", "rank", "split"]
    refined = TrainConfig(method="ot", margin=0.1)
    assert levers(advise(sample.recall(FEW), curve=FLAT, plan=plan_of(9, 8, 16), rank=4, config=refined)) == [
        "rank", "split", "method"
    ]  # fmt: skip


def test_within_the_laws_capacity_and_without_a_curve_the_training_is_what_fell_short() -> None:
    advice = advise(sample.recall(LOW), plan=plan_of(4, 2, 8), rank=6, config=TrainConfig(steps=300))
    assert levers(advice) == ["steps"]
    assert advice[0].settings == {"steps": 600}
    assert "Training fell short, not the adapter." in advice[0].evidence


def test_a_slow_rise_is_advised_as_many_steps_as_its_pace_asks_for() -> None:
    slow = [0.5] * 60 + [0.60] * 20 + [0.64] * 20  # 0.04 a fifth, 0.36 missing: nine fifths more
    (advice,) = advise(sample.recall(LOW), curve=slow, rank=4)
    assert (advice.lever, advice.settings) == ("steps", {"steps": 280})
    slower = [0.5] * 60 + [0.60] * 20 + [0.62] * 20  # nineteen fifths: that is no rise
    (advice,) = advise(sample.recall(LOW), curve=slower, rank=4)
    assert advice.lever == "rank"


def test_a_thinned_curve_counts_the_steps_that_were_taken() -> None:
    thin = [0.5] * 6 + [0.60] * 2 + [0.64] * 2  # 0.04 a fifth, 0.36 missing: nine fifths more
    (advice,) = advise(sample.recall(LOW), curve=tuple(thin), steps=1000, rank=4)
    assert advice.settings == {"steps": 2800}
    assert "over the last fifth of 1,000 steps" in advice.evidence


def test_a_curve_that_lacks_the_last_fifths_says_nothing() -> None:
    known = advise(sample.recall(LOW), rank=4)
    assert advise(sample.recall(LOW), curve=(None,) * 7 + (0.60, 0.64, 0.64), rank=4) == known
    (rising,) = advise(sample.recall(LOW), curve=(None,) * 6 + (0.60, 0.60, 0.64, 0.64), rank=4)
    assert rising.lever == "steps"


def test_a_set_that_no_rank_holds_is_advised_more_modules_then_a_split() -> None:
    both = advise(sample.recall(LOW), curve=FLAT, plan=plan_of(None), rank=32)
    assert levers(both) == ["placement", "split"]
    assert "No rank up to 32" in both[0].evidence
    assert levers(advise(sample.recall(LOW), plan=plan_of(None), rank=32, placement="all-linear")) == ["split"]
    (advice,) = advise(sample.recall({"long": LOW["r0"]}), plan=plan_of(None), rank=32, placement="all-linear")
    assert advice.do.startswith("Split the text into two facts, over two adapters")


def test_the_largest_rank_is_never_advised_again() -> None:
    advice = advise(sample.recall(LOW), curve=FLAT, plan=plan_of(30, 20, None), rank=32)
    assert levers(advice) == ["placement", "split"]
    assert "Rank 32 is the highest these modules can use" in advice[0].evidence
    (near, *_) = advise(sample.recall(LOW), curve=FLAT, plan=plan_of(30, 20, None), rank=28)
    assert near.settings == {"rank": 31}


def test_after_a_loss_that_rose_only_a_lower_learning_rate_is_advised() -> None:
    """Neither rank nor steps nor modules: what a diverged training left stubborn says nothing of capacity."""
    known = {"rank": 8, "plan": plan_of(16, 8, 32), "curve": FLAT}
    config = TrainConfig(method="ot", learning_rate=2e-2)
    for losses in ({"loss_init": 4.7, "loss_final": 36.0}, {"loss_init": 4.7, "loss_final": None, "diverged": True}):
        (advice,) = advise(sample.recall(LOW), config=config, **known, **losses)
        assert (advice.lever, advice.settings) == ("learning_rate", {"learning_rate": 5e-3})
    (unknown,) = advise(sample.recall(LOW), loss_init=4.7, loss_final=5.0)
    assert (unknown.lever, unknown.settings) == ("learning_rate", {})
    fell = advise(sample.recall(LOW), config=config, **known, loss_init=4.7, loss_final=1.0)
    assert levers(fell) == levers(advise(sample.recall(LOW), config=config, **known)) != ["learning_rate"]


def test_where_nothing_is_known_of_the_training_the_planner_is_named() -> None:
    (advice,) = advise(sample.recall(LOW))
    assert (advice.lever, advice.settings) == ("rank", {})
    assert "memlaw plan" in advice.do
    (advice,) = advise(sample.recall(LOW), rank=4)
    assert advice.settings == {"rank": 8}
    (advice, *_) = advise(sample.recall(LOW), plan=plan_of(4, 2, 9))
    assert advice.settings == {"rank": 6}


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        (None, {"method": "ot", "until": "recalled", "margin": 0.1}),
        (TrainConfig(method="sft"), {"method": "ot", "until": "recalled", "margin": 0.1}),
        (TrainConfig(method="ot"), {"until": "recalled", "margin": 0.1}),
        (TrainConfig(method="sw", margin=0.1), {"focus": 1.0}),
    ],
)
def test_a_few_stubborn_tokens_are_advised_what_was_not_yet_done(
    config: TrainConfig | None, asked: dict[str, Any]
) -> None:
    (advice,) = (one for one in advise(sample.recall(FEW), config=config) if one.lever == "method")
    assert advice.settings == asked
    assert "4 stubborn tokens (4.0% of all) spoil 4 records of 10; 4 of these have just one." in advice.evidence


def test_ordered_by_less_than_the_precision_needs_is_advised_a_margin() -> None:
    thin = sample.recall({"a": [0.1, 0.68], "b": [0.1, 0.1]}, tolerance=0.08)
    (advice,) = advise(thin, config=TrainConfig(method="ot", margin=0.0))
    assert (advice.lever, advice.settings) == ("method", {"until": "recalled", "margin": 0.1})
    assert "in 1 record of 2 the margin is below the 0.08 nats that float32 needs" in advice.evidence


def test_the_margin_advised_is_that_of_the_precision_and_then_a_larger_one_below_ln_2() -> None:
    thin = replace(sample.recall({"a": [0.1, 0.45], "b": [0.1, 0.1]}, tolerance=0.31), dtype="bfloat16")
    asked = []
    for margin in (0.1, MARGINS["bfloat16"], 0.6, LARGEST_MARGIN):
        (advice,) = advise(thin, config=TrainConfig(method="ot", margin=margin))
        asked.append(advice.settings.get("margin"))
        assert ("--for bfloat16" in advice.do) == (margin == 0.1)
    assert asked == [MARGINS["bfloat16"], 0.6, LARGEST_MARGIN, None]
    assert "Serve the model in float32" in advice.do


@pytest.mark.parametrize(
    ("trained_for", "judged", "asked"),
    [
        ((), "q4_0", ("q4_0",)),
        (("q8_0", "q4_0"), "q5_0", ("q8_0", "q4_0", "q5_0")),
        (("q4_0",), "float32", ("q4_0", "float32")),
    ],
)
def test_judged_on_other_weights_than_trained_on_only_a_training_for_them_helps(
    trained_for: tuple[Precision, ...], judged: str, asked: tuple[str, ...]
) -> None:
    report = replace(sample.recall(FEW), dtype=judged)
    (advice,) = advise(report, config=TrainConfig(method="ot", margin=0.3, served_as=trained_for))
    assert (advice.lever, advice.settings) == ("method", {"served_as": asked})
    assert f"--for {','.join(asked)}" in advice.do
    assert ("--as " in advice.do) == bool(trained_for)
    TrainConfig(**advice.settings)
    there = TrainConfig(method="ot", margin=0.3, served_as=asked)
    assert all("served_as" not in one.settings for one in advise(report, config=there))


def test_reach_is_taken_from_the_recall_too_where_it_was_measured() -> None:
    report = sample.recall({"a": [0.1, 2.0], "b": [0.1, 0.1]})
    item = report.items[0]
    judged = replace(item, tokens=replace(item.tokens, unreachable=(1,)))
    (advice,) = advise(replace(report, items=(judged, report.items[1])))
    assert (advice.lever, advice.settings) == ("tokens", {})


def test_errors_of_records_that_are_recalled_are_no_reason_to_mend_them_first() -> None:
    fault = Finding("error", "r9", "too-long", "It has 900 tokens.", "Split it.")
    assert levers(advise(sample.recall(FEW), findings=[fault])) == ["method"]
    of_a_failure = replace(fault, record="r0")
    advice = advise(sample.recall(FEW), findings=[of_a_failure, replace(fault, record=None)])
    assert levers(advice) == ["data", "method"]
    assert advice[0].do == "Split it."
    assert "errors (too-long) for 1 failing record" in advice[0].evidence
    assert str(advice[0]) == f"{advice[0].do} {advice[0].evidence}"


LOSSES = st.lists(
    st.lists(st.sampled_from((0.1, 0.1, 0.1, 0.6, 3.0)), min_size=1, max_size=9), min_size=1, max_size=9
) | st.just([*FEW.values()])

CONFIGS = st.none() | st.builds(
    TrainConfig,
    method=st.sampled_from(("sft", "ot")),
    margin=st.sampled_from((0.0, 0.1)),
    focus=st.sampled_from((0.0, 1.0)),
)

PLANS = st.none() | st.just(plan_of(None)) | st.just(plan_of(9, 4, None)) | st.just(plan_of(2, 1, 3))


@settings(max_examples=300)
@given(
    losses=LOSSES,
    curve=st.lists(st.floats(0, 1), max_size=40),
    law=PLANS,
    rank=st.none() | st.integers(1, 32),
    config=st.none()
    | st.builds(TrainConfig, method=st.sampled_from(("sft", "ot")), margin=st.sampled_from((0.0, 0.1))),
    decoded=st.booleans(),
    rose=st.booleans(),
)
def test_every_failure_within_an_adapters_power_gets_advice_that_can_be_followed(
    losses: list[list[float]], curve: list[float], law: Plan | None, rank: int | None, config: TrainConfig | None,
    decoded: bool, rose: bool,
) -> None:  # fmt: skip
    report = sample.recall({str(n): nll for n, nll in enumerate(losses)}, decoded=decoded)
    advice = advise(report, curve=curve, plan=law, rank=rank, config=config, diverged=rose)
    assert bool(advice) == (report.ordered < report.tokens)
    assert len(set(levers(advice))) == len(advice)
    for one in advice:
        replace(config or TrainConfig(), **{k: v for k, v in one.settings.items() if k not in ("rank", "placement")})
        asked = one.settings.get("rank", 1)
        assert asked <= (law.largest_rank if law is not None else 64)
        assert rank is None or one.lever != "rank" or asked > rank


def test_advice_needs_no_model_and_loads_no_torch() -> None:
    program = "import sys, memlaw.planning.advice, memlaw.diagnosis.findings; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    )
