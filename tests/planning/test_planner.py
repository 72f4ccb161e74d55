"""The plan: the smallest rank that works, with calibrated uncertainty, and a sentence if no rank does."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.paths import FIXTURES
from helpers.slow_law import BOUNDED, MEMORY, PAPER, simulate, smallest_rank
from helpers.slow_planning import rank_that_recalls, recalled_cells
from memlaw.core.errors import ConfigError, FitError
from memlaw.core.recall import LN2
from memlaw.law import LawFit, calibrate, fit_law, published, read_points
from memlaw.planning import (
    CellRecall,
    KnownLaw,
    MeasuredSet,
    Plan,
    PlanRequest,
    RankRange,
    Target,
    TrainingWork,
    default_law,
    plan,
    recall_curve,
    recall_loss,
)

DATA = FIXTURES


@dataclass(frozen=True)
class Modules:
    """`count` modules of one shape, as a placement."""

    d_in: int
    d_out: int
    count: int = 1
    parallel: bool = False

    @property
    def max_rank(self) -> int:
        return min(self.d_in, self.d_out)

    def parameters(self, rank: int) -> int:
        return self.count * rank * (self.d_in + self.d_out)

    def lora_config(self, rank: int, *, scale: float) -> dict[str, Any]:
        return {"r": rank, "lora_alpha": scale * rank}


DOWN = Modules(12288, 4096)

TINY = Modules(128, 128, parallel=True)

LAW = fit_law(simulate(BOUNDED, noise=0.05), "bounded", source="simulated cells")

EXACT = fit_law(simulate(BOUNDED), "bounded")

LOW = Target(None, 0.05)


def planned(
    law: LawFit = LAW, *, tokens: int = 3000, loss_init: float = 12.0, placement: Modules = DOWN, **more: Any
) -> Plan:
    facts = MeasuredSet(
        records=more.pop("records", 10), tokens=tokens, loss_init=loss_init,
        loss_memoryless=more.pop("loss_memoryless", None),
    )  # fmt: skip
    known = KnownLaw(law, tuple(more.pop("cells", ())), more.pop("near", ()))
    request = PlanRequest(more.pop("target", Target()), more.pop("rank", None))
    return plan(known, facts, placement, request, **more)


def targets() -> st.SearchStrategy[Target]:
    shares, losses = st.floats(0.05, 1).map(Target), st.floats(0.02, 2).map(lambda loss: Target(None, loss))
    return st.one_of(st.just(Target()), shares, losses)


@given(tokens=st.integers(10, 50_000), loss_init=st.floats(0.5, 14), target=targets())
@settings(max_examples=40, deadline=None)
def test_the_recommended_rank_works_and_the_one_below_does_not(tokens: int, loss_init: float, target: Target) -> None:
    result = planned(tokens=tokens, loss_init=loss_init, target=target)
    rank, nats = result.rank.value, result.loss_needed.nats
    assert rank is not None

    def ends_at(r: int) -> float:
        return loss_init - LAW.predict(r, tokens, loss_init=loss_init)

    assert ends_at(rank) <= nats + 1e-7
    assert rank == 1 or ends_at(rank - 1) > nats
    assert nats > LN2 or (result.saturation.value or 0) <= rank


@given(tokens=st.integers(10, 50_000), loss_init=st.floats(0.5, 14), target=targets())
@settings(max_examples=40, deadline=None)
def test_value_interval_and_probabilities_agree(tokens: int, loss_init: float, target: Target) -> None:
    result = planned(tokens=tokens, loss_init=loss_init, target=target)
    rank, none = result.rank, math.inf
    assert rank.low is not None
    assert 1 <= rank.low <= (rank.value or none) <= (rank.high or none)
    assert rank.low <= (result.sure or none) <= (rank.high or none)
    chances = [chance.probability for chance in result.probabilities]
    assert chances == sorted(chances)
    assert [chance.rank for chance in result.probabilities] == [r for r in published.RANKS if r <= result.largest_rank]
    for chance in result.probabilities:
        assert 0 <= chance.probability <= 1
        assert (chance.rank >= (result.sure or none)) == (chance.probability >= 0.95)
        assert chance.rank >= rank.low or chance.probability <= 0.025
        assert chance.rank < (rank.high or none) or chance.probability >= 0.975


def test_a_law_known_exactly_gives_the_rank_found_by_trying() -> None:
    for tokens in (800, 3000, 8000):
        result = planned(EXACT, tokens=tokens, target=LOW)
        assert result.rank.value == smallest_rank(BOUNDED, tokens, 12.0, 0.05)
        assert result.saturation.value == smallest_rank(BOUNDED, tokens, 12.0, LN2)
        assert result.rank.low in (result.rank.value - 1, result.rank.value)
        assert result.rank.high == result.sure == result.rank.value


@pytest.mark.parametrize("target", [Target(), Target(0.9)])
def test_recall_asks_for_the_rank_that_comes_down_to_the_loss_it_needs(target: Target) -> None:
    for tokens in (300, 2000, 9000):
        result = planned(EXACT, tokens=tokens, target=target)
        nats = float(recall_curve().loss_for(target.rate(10, tokens)))
        assert result.loss_needed.nats == nats
        assert result.rank.value == smallest_rank(BOUNDED, tokens, 12.0, nats)


def test_the_memory_form_counts_from_what_has_to_be_remembered() -> None:
    law = fit_law(simulate(MEMORY), "memory")
    for tokens in (800, 3000, 8000):
        found = planned(law, tokens=tokens, target=Target(None, 0.3), loss_memoryless=11.0).rank.value
        assert found == smallest_rank(MEMORY, tokens, 12.0, 0.3)


@pytest.mark.parametrize("form", ["paper", "bounded"])
def test_95_percent_of_intervals_contain_the_rank_that_truly_works(form: str) -> None:
    truth, inside = (PAPER if form == "paper" else BOUNDED), []
    for seed in range(40):
        cells = simulate(truth, noise=0.1, seed=seed, loss_init=12.0, with_final=form == "bounded")
        law = fit_law([p for p in cells if p.delta_loss < 11.3] if form == "paper" else cells, form)
        tokens = 2000 + 250 * seed
        found, right = planned(law, tokens=tokens, target=LOW).rank, smallest_rank(truth, tokens, 12.0, 0.05)
        assert found.low is not None
        inside.append(found.low <= right <= (found.high or math.inf))
    assert np.mean(inside) >= 0.9


def test_a_few_cells_of_the_users_own_data_make_the_interval_right_for_it() -> None:
    """The law was found on random targets; the data to store start at 5 nats and cost a third as much."""
    there, inside = {**BOUNDED, "C": 250.0, "b": 1.4}, []
    for seed in range(40):
        law = fit_law(simulate(BOUNDED, noise=0.05, seed=seed), "bounded")
        few = simulate(there, loss_init=5.0, noise=0.05, seed=seed + 500, ranks=(1, 2, 4, 8), lengths=(2000,))
        found = planned(calibrate(law, few), tokens=6000, loss_init=5.0, target=LOW).rank
        assert found.low is not None
        inside.append(found.low <= smallest_rank(there, 6000, 5.0, 0.05) <= (found.high or math.inf))
    assert np.mean(inside) >= 0.9


def test_95_percent_of_intervals_contain_the_rank_at_which_a_set_truly_comes_back() -> None:
    """Law, rate of errors, luck and scatter all unknown; cells show the first two, of sets a tenth as long."""
    inside, certain = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        log_h = recall_loss._LOG_H + recall_loss._LOG_H_DEVIATION * random.standard_normal()
        log_c = recall_loss._LOG_C + recall_loss._LOG_C_DEVIATION * random.standard_normal()
        points = simulate(BOUNDED, noise=0.05, seed=seed)
        cells = recalled_cells(points, log_h, log_c, random)
        tokens = 1000 + 100 * seed
        found = planned(fit_law(points, "bounded"), tokens=tokens, records=tokens // 10, cells=cells)
        right = rank_that_recalls(BOUNDED, tokens, 12.0, log_h, log_c, noise=0.05, random=random)
        assert found.rank.low is not None
        inside.append(found.rank.low <= right <= (found.rank.high or math.inf))
        certain.append(right <= (found.sure or math.inf))
    assert np.mean(inside) >= 0.9
    assert np.mean(certain) >= 0.88


@given(
    one=st.integers(50, 100_000), factor=st.floats(1, 8), loss_init=st.floats(1, 13), target=targets(),
    each=st.integers(1, 60),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_more_target_tokens_never_need_less_rank(
    one: int, factor: float, loss_init: float, target: Target, each: int
) -> None:
    few, many = (
        planned(tokens=each * count, records=count, loss_init=loss_init, target=target).rank
        for count in (max(1, one // each), max(1, int(factor * one) // each))
    )
    none = math.inf
    assert (few.value or none) <= (many.value or none)
    assert (few.low or none) <= (many.low or none) + 1


def test_more_to_hold_needs_no_less() -> None:
    ranks = [planned(tokens=tokens).rank for tokens in (500, 1000, 2000, 4000, 8000)]
    for name in ("low", "value", "high"):
        values = [getattr(rank, name) for rank in ranks]
        assert values == sorted(values)
    dearer = [planned(loss_init=loss).rank.value for loss in (2.0, 4.0, 8.0, 12.0)]
    assert dearer == sorted(dearer)
    assert dearer[0] < dearer[-1]


@given(shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)), records=st.integers(1, 3000))
@settings(max_examples=15, deadline=None)
def test_a_larger_share_never_allows_a_larger_loss_or_a_smaller_rank(shares: tuple[float, float], records: int) -> None:
    few, many = (planned(tokens=3000, records=records, target=Target(share)) for share in sorted(shares))
    assert 0 < many.loss_needed.nats <= few.loss_needed.nats * (1 + 1e-9)
    assert (few.rank.value or math.inf) <= (many.rank.value or math.inf)
    for chance_few, chance_many in zip(few.probabilities, many.probabilities, strict=True):
        assert chance_many.probability <= chance_few.probability + 1e-9


def test_a_plan_is_the_same_every_time() -> None:
    assert planned().to_dict() == planned().to_dict()


def test_over_parameters_two_sites_need_half_the_rank_of_one() -> None:
    cells = [replace(p, parameters=(DOWN.d_in + DOWN.d_out) * p.rank) for p in simulate(BOUNDED, noise=0.05)]
    law = fit_law(cells, "bounded", axis="parameters")
    one = planned(law, tokens=8000, target=LOW)
    two = planned(law, placement=replace(DOWN, count=2), tokens=8000, target=LOW)
    assert one.rank.value is not None
    assert one.rank == planned(fit_law(cells, "bounded"), tokens=8000, target=LOW).rank
    assert two.rank.value == math.ceil(one.rank.value / 2)


@pytest.mark.parametrize("target", [Target(), Target(0.9), LOW], ids=str)
@pytest.mark.parametrize("rank", [2, 9, 30])
def test_capacity_and_rank_invert_each_other(target: Target, rank: int) -> None:
    result = planned(rank=rank, target=target, tokens=3000, records=300)
    capacity = result.capacity
    assert capacity is not None
    assert capacity.rank == rank
    assert capacity.low < capacity.tokens < capacity.high
    under, over = (10 * round(share * capacity.tokens / 10) for share in (0.98, 1.02))
    assert planned(target=target, tokens=under, records=under // 10).rank.value == rank
    assert planned(target=target, tokens=over, records=over // 10).rank.value == rank + 1


def test_the_capacity_is_that_of_the_recommended_rank_unless_another_is_asked_for() -> None:
    result = planned()
    assert result.capacity is not None
    assert result.capacity.rank == result.rank.value
    assert result.capacity.tokens >= 3000
    assert planned(rank=64).rank == result.rank


def test_a_rank_saturates_where_its_mean_loss_passes_ln_2() -> None:
    capacity = planned(rank=8).capacity
    assert capacity is not None
    assert capacity.saturates is not None
    assert LAW.predict(8, capacity.saturates, loss_init=12.0) == pytest.approx(12.0 - LN2)
    assert capacity.saturates > capacity.tokens


def test_the_interval_of_a_length_holds_the_length_that_truly_fits() -> None:
    inside = []
    fits = max(length for length in range(100, 9000, 20) if smallest_rank(BOUNDED, length, 12.0, 0.05) <= 10)
    for seed in range(30):
        law = fit_law(simulate(BOUNDED, noise=0.05, seed=seed), "bounded")
        capacity = planned(law, rank=10, target=LOW, tokens=2000).capacity
        assert capacity is not None
        inside.append(capacity.low <= fits <= capacity.high)
    assert np.mean(inside) >= 0.9


def test_what_no_adapter_holds_is_split_over_the_fewest_that_do() -> None:
    result = planned(tokens=200_000, placement=TINY, target=LOW)
    split = result.split
    assert split is not None
    assert split.tokens_each == math.ceil(200_000 / split.adapters)
    assert planned(tokens=split.tokens_each, placement=TINY, target=LOW).rank.value == split.rank_each
    fewer = math.ceil(200_000 / (split.adapters - 1))
    assert planned(tokens=fewer, placement=TINY, target=LOW).rank.value is None
    assert planned().split is None


def test_a_plan_without_a_rank_says_why() -> None:
    result = planned(tokens=200_000, placement=TINY, target=LOW)
    assert result.rank.value is None
    assert result.rank.high is None
    assert result.reason is not None
    assert result.reason.startswith(
        "No rank up to 128, the most these modules can use, is predicted to bring 200,000 target tokens to a mean loss "
        "of 0.05 nats: the law predicts that about "
    )
    assert result.reason.endswith("Adapt more modules or layers, or split the set over several adapters.")
    assert (result.lora_config, result.cost, result.train, result.sure, result.capacity) == (None,) * 5
    assert max(chance.probability for chance in result.probabilities) < 0.5
    json.dumps(result.to_dict(), allow_nan=False)


def test_where_not_even_a_token_each_would_fit_no_split_is_named() -> None:
    result = planned(tokens=3000, placement=replace(TINY, d_in=1), target=Target(None, 1e-300))
    assert (result.rank.value, result.split) == (None, None)


def test_an_interval_may_reach_beyond_the_largest_rank() -> None:
    result = planned(tokens=12_000, placement=replace(TINY, d_in=planned(tokens=12_000).rank.value or 0))
    assert result.rank.value == result.largest_rank
    assert result.rank.high is None
    assert result.sure is None
    assert result.reason is None


def test_extrapolation_is_stated() -> None:
    assert planned(tokens=1000, target=Target(None, 0.5)).extrapolates is None
    longer = planned(tokens=80_000).extrapolates
    assert longer is not None
    assert longer.startswith("Outside the measured range: 80,000 target tokens (fitted: 500 to 8,000); rank ")
    assert longer.endswith("The interval assumes that the law continues unchanged.")
    borrowed = planned(default_law(), tokens=1000, loss_init=12.3, placement=TINY, target=LOW)
    beyond = planned(default_law(), tokens=9999, target=LOW).extrapolates
    assert beyond is not None
    assert "adapter parameters (fitted: 8,192 to 196,608)" in beyond
    assert borrowed.extrapolates is None


def test_a_doubtful_law_is_called_doubtful() -> None:
    law = fit_law(read_points(DATA / "tiny_points.csv"), "paper")
    caveats = planned(law, tokens=64, loss_init=11.2).caveats
    assert caveats[0].startswith(
        "The law behind this plan is doubtful. Not identifiable: alpha's 95% interval includes 0"
    )


def test_a_law_without_error_bars_leaves_every_rank_open() -> None:
    exact = fit_law(simulate(PAPER, ranks=(1, 8), lengths=(500, 4000), with_final=False), "paper")
    assert exact.covariance is None
    result = planned(exact, target=LOW)
    assert result.rank == RankRange(smallest_rank(PAPER, 3000, 12.0, 0.05), 1, None)
    assert (result.sure, result.probabilities) == (None, ())
    assert result.capacity is not None
    assert result.capacity.low < 0.02 * result.capacity.tokens
    assert result.capacity.high > 50 * result.capacity.tokens


def test_other_data_than_the_laws_is_noticed() -> None:
    assert planned(loss_init=11.5).caveats == ()
    (caveat,) = planned(loss_init=3.0).caveats
    assert caveat.startswith(
        "The base starts at 3.00 nats per token on these targets, but 12.00 on the law's cells: this is another kind "
        "of data, or the lengths were not counted in target tokens. Expect the rank to be right only within a factor "
        "of 4;"
    )


def test_other_data_are_also_known_by_what_they_cost_without_a_memory() -> None:
    law = fit_law(simulate(MEMORY, noise=0.05), "memory")
    assert planned(law, loss_memoryless=11.0).caveats == ()
    (caveat,) = planned(law, loss_memoryless=2.3).caveats
    assert caveat.startswith(
        "The best predictor without memory needs 2.30 nats per token on these targets, but 11.00 on the law's cells: "
        "this is another kind of data"
    )


def test_targets_the_base_already_knows() -> None:
    result = planned(loss_init=0.04)
    assert result.rank.value == 1
    assert any("already reaches the loss that is needed" in caveat for caveat in result.caveats)


def test_the_papers_placement_is_not_promised_to_peft() -> None:
    assert any("PEFT cannot build" in caveat for caveat in planned(placement=TINY, tokens=600).caveats)
    assert planned(placement=TINY, tokens=600).lora_config is None
    assert not any("PEFT" in caveat for caveat in planned().caveats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": 0}, r"Cannot plan for 0 records with 3000 target tokens"),
        ({"records": 9, "tokens": 5}, r"for 9 records with 5 target tokens: .* each record at least one"),
        ({"loss_init": 0.0}, r"loss_init is 0\.0, but .* must be a finite number of nats above 0"),
        ({"loss_init": math.nan}, r"loss_init is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**change)


def test_a_law_without_numbers_plans_nothing() -> None:
    with pytest.raises(FitError, match="All cells have one rank"):
        planned(fit_law(simulate(BOUNDED, ranks=(4,)), "bounded"))


def test_cells_say_at_which_loss_everything_comes_back() -> None:
    strict = [CellRecall(loss, exact, 20, 200) for loss, exact in ((0.5, 0), (0.3, 0), (0.1, 5), (0.03, 19))]
    lax = [CellRecall(loss, exact, 20, 200) for loss, exact in ((0.9, 12), (0.5, 20), (0.3, 20))]
    nats = [planned(cells=cells).loss_needed.nats for cells in (strict, [], lax)]
    assert nats == sorted(nats)
    assert nats[2] > 5 * nats[0]
    ranks = [planned(cells=cells).rank.value for cells in (strict, [], lax)]
    assert ranks == sorted(ranks, reverse=True)


def test_the_loss_needed_says_where_it_comes_from() -> None:
    assert planned().loss_needed.why == (
        "to recall all facts verbatim: from memlaw's experiments with small models, because no cells were given."
    )
    cells = [CellRecall(0.2, 12, 12, 120), CellRecall(0.6, 3, 12, 120)]
    assert planned(cells=cells, target=Target(0.9)).loss_needed.why == (
        "to recall 0.9 of the facts verbatim: learned from 2 cells."
    )
    asked = planned(target=LOW).loss_needed
    assert (asked.nats, asked.why) == (0.05, "as requested.")


def test_the_configuration_is_the_placements_at_the_recommended_rank() -> None:
    result = planned(scale=2.0)
    assert result.rank.value is not None
    assert result.lora_config == {"r": result.rank.value, "lora_alpha": 2 * result.rank.value}


def test_the_configuration_of_a_real_placement_pastes_into_peft() -> None:
    from peft import LoraConfig

    from memlaw.adapter.placement import Placement
    from memlaw.model.outline import Site

    placement: Any = Placement(("down_proj",), (24,), (Site("model.layers.24.mlp.down_proj", 24, 12288, 4096),))
    result = planned(placement=placement)
    assert result.lora_config is not None
    config = LoraConfig(**result.lora_config)
    assert config.r == result.rank.value == config.lora_alpha
    assert config.target_modules == {"down_proj"}
    assert config.layers_to_transform == [24]


def test_cost_counts_what_is_trained() -> None:
    work = TrainingWork(2_000_000, tokens_per_step=500, steps=100)
    cost = planned(placement=replace(DOWN, count=2), work=work).cost
    assert cost is not None
    assert cost.adapter_parameters == (planned().rank.value or 0) * 2 * (12288 + 4096)
    assert cost.adapter_bytes == 4 * cost.adapter_parameters
    assert cost.optimizer_bytes == 3 * cost.adapter_bytes
    assert (cost.training_flops, cost.steps, cost.seconds) == (6 * 2_000_000 * 500 * 100, 100, None)
    timed = planned(work=replace(work, seconds_per_step=0.25)).cost
    assert timed is not None
    assert timed.seconds == 25.0
    unknown = planned().cost
    assert unknown is not None
    assert (unknown.training_flops, unknown.steps, unknown.seconds) == (None, None, None)


def test_the_rule_of_thumb_gives_each_target_token_a_parameter() -> None:
    assert planned(tokens=16384).rule_of_thumb == 1
    assert planned(tokens=16385).rule_of_thumb == 2
    assert planned(tokens=16385, placement=replace(DOWN, count=2)).rule_of_thumb == 1


def test_bits_are_what_has_to_be_remembered() -> None:
    assert planned(tokens=1000, loss_init=12.0).bits == pytest.approx(1000 * 12.0 / LN2)
    assert planned(tokens=1000, loss_init=12.0, loss_memoryless=2.3).bits == pytest.approx(1000 * 2.3 / LN2)
    known = planned(tokens=1000, loss_init=2.0, loss_memoryless=2.3)
    assert (known.loss_memoryless, known.bits) == (2.0, pytest.approx(1000 * 2.0 / LN2))


def test_the_plan_has_the_keys_others_rely_on() -> None:
    values = planned(near=("Its model is another.",)).to_dict()
    assert values.keys() >= {"records", "tokens", "bits", "rank", "law", "lora_config"}
    assert values["rank"].keys() == {"value", "low", "high"}
    assert values["target"] == {"share": 1.0, "loss": None}
    assert values["law"]["source"] == "simulated cells"
    assert values["law"]["borrowed"] is False
    assert values["law"]["near"] == ["Its model is another."]
    assert values["probabilities"][0].keys() == {"rank", "probability"}
    assert values["capacity"].keys() == {"rank", "tokens", "low", "high", "saturates"}
    json.dumps(values, allow_nan=False)


def test_the_default_law_is_the_published_one_and_says_it_is_borrowed() -> None:
    law = default_law()
    assert (law.form, law.axis, law.status, law.n) == ("bounded", "parameters", "ok", 70)
    assert law.rank_for(4000) / 8192 == pytest.approx(fit_law(published.points(), "bounded").rank_for(4000), rel=1e-4)
    result = planned(law, tokens=1000, loss_init=12.3, target=LOW)
    assert result.law.borrowed
    assert "arXiv 2605.30260" in result.law.source
    assert result.caveats[0].startswith("Borrowed: this law was fitted to Qwen3-8B, not to this model.")
    assert "memlaw probe" in result.caveats[0]
    assert result.rank.value is not None
    assert result.rank.high is not None
    assert result.rank.high / result.rank.value > 3


def test_the_borrowed_interval_holds_for_a_model_a_thousand_times_smaller() -> None:
    """Where the tiny model's measured loss falls under ln 2, in a probe that the law has never seen."""
    law, cells = default_law(), read_points(DATA / "tiny_reachable_points.csv")
    for length in (16, 32, 64, 96, 128, 192):
        row = [p for p in cells if p.length == length]
        ranks, losses = np.log([p.rank for p in row]), np.log([p.final_loss or 0 for p in row])
        crosses = math.exp(np.interp(-math.log(LN2), -losses, ranks))
        found = planned(law, tokens=length, loss_init=row[0].loss_init or 0, placement=TINY).saturation
        assert found.low is not None
        assert found.low <= crosses <= (found.high or math.inf)
