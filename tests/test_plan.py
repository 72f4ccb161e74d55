"""The plan: the smallest rank that works, with a doubt that is right, and sentences where there is none."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_law import BOUNDED, PAPER, simulate, smallest_rank

from memlaw import published
from memlaw.errors import ConfigError, FitError
from memlaw.law import LawFit, calibrate, fit_law, read_points
from memlaw.plan import DEFAULT_LOSS, Plan, TrainingWork, default_law, loss_needed, plan
from memlaw.records import LN2

DATA = Path(__file__).parent / "data"


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


def planned(law: LawFit = LAW, *, tokens: int = 3000, loss_init: float = 12.0, placement=DOWN, **more) -> Plan:
    return plan(law, records=more.pop("records", 10), tokens=tokens, loss_init=loss_init, placement=placement, **more)


# --- the rank --------------------------------------------------------------------------------------------------------


@given(tokens=st.integers(10, 50_000), loss_init=st.floats(0.5, 14), worst=st.floats(0.02, 0.4))
@settings(max_examples=50, deadline=None)
def test_the_recommended_rank_works_and_the_one_below_does_not(tokens, loss_init, worst):
    result = planned(tokens=tokens, loss_init=loss_init, observed=[(worst, 1.0), (2.0, 0.5)])
    rank, needed = result.rank.value, result.loss_needed.nats
    assert rank is not None

    def ends_at(r):
        return loss_init - LAW.predict(r, tokens, loss_init=loss_init)

    assert ends_at(rank) <= needed + 1e-7
    assert rank == 1 or ends_at(rank - 1) > needed
    assert 1 <= result.rank.low <= rank
    assert result.rank.high is None or rank <= result.rank.high
    assert result.saturation.value <= rank


def test_a_law_known_exactly_gives_the_rank_found_by_trying():
    exact = fit_law(simulate(BOUNDED), "bounded")
    for tokens in (800, 3000, 9000):
        result = planned(exact, tokens=tokens)
        assert result.rank.value == smallest_rank(BOUNDED, tokens, 12.0, DEFAULT_LOSS)
        assert result.saturation.value == smallest_rank(BOUNDED, tokens, 12.0, LN2)
        assert result.rank.low in (result.rank.value - 1, result.rank.value)
        assert result.rank.high == result.rank.value


@pytest.mark.parametrize("form", ["paper", "bounded"])
def test_95_percent_of_intervals_contain_the_rank_that_truly_works(form):
    truth, inside = (PAPER if form == "paper" else BOUNDED), []
    for seed in range(40):
        cells = simulate(truth, noise=0.1, seed=seed, loss_init=12.0, with_final=form == "bounded")
        law = fit_law([p for p in cells if p.delta_loss < 11.3] if form == "paper" else cells, form)
        tokens = 2000 + 250 * seed
        found, right = planned(law, tokens=tokens).rank, smallest_rank(truth, tokens, 12.0, DEFAULT_LOSS)
        inside.append(found.low <= right <= (found.high or math.inf))
    assert np.mean(inside) >= 0.9


def test_a_few_cells_of_the_users_own_data_make_the_interval_right_for_it():
    """The law was found on random targets; the data to store start at 5 nats and cost a third as much."""
    there, inside = {**BOUNDED, "C": 250.0, "b": 1.4}, []
    for seed in range(40):
        law = fit_law(simulate(BOUNDED, noise=0.05, seed=seed), "bounded")
        few = simulate(there, loss_init=5.0, noise=0.05, seed=seed + 500, ranks=(1, 2, 4, 8), lengths=(2000,))
        found = planned(calibrate(law, few), tokens=6000, loss_init=5.0).rank
        inside.append(found.low <= smallest_rank(there, 6000, 5.0, DEFAULT_LOSS) <= (found.high or math.inf))
    assert np.mean(inside) >= 0.9


def test_more_to_hold_needs_no_less():
    ranks = [planned(tokens=tokens).rank for tokens in (500, 1000, 2000, 4000, 8000)]
    for name in ("low", "value", "high"):
        values = [getattr(rank, name) for rank in ranks]
        assert values == sorted(values)
    dearer = [planned(loss_init=loss).rank.value for loss in (2.0, 4.0, 8.0, 12.0)]
    assert dearer == sorted(dearer)
    assert dearer[0] < dearer[-1]


def test_a_plan_is_the_same_every_time():
    assert planned().to_dict() == planned().to_dict()


def test_noisier_cells_make_a_wider_interval():
    quiet, loud = (planned(fit_law(simulate(BOUNDED, noise=n), "bounded")).rank for n in (0.02, 0.3))
    assert loud.high - loud.low > quiet.high - quiet.low


def test_over_parameters_two_sites_need_half_the_rank_of_one():
    cells = [replace(p, parameters=(DOWN.d_in + DOWN.d_out) * p.rank) for p in simulate(BOUNDED, noise=0.05)]
    law = fit_law(cells, "bounded", axis="parameters")
    one = planned(law, tokens=8000)
    two = planned(law, placement=replace(DOWN, count=2), tokens=8000)
    assert one.rank == planned(fit_law(cells, "bounded"), tokens=8000).rank
    assert two.rank.value == math.ceil(one.rank.value / 2)


# --- what cannot be recommended, and what must be said ---------------------------------------------------------------


def test_no_rank_is_said_to_be_none():
    result = planned(tokens=200_000, placement=TINY)
    assert result.rank.value is None
    assert result.rank.high is None
    assert result.reason.startswith(
        "No rank up to 128, the most these modules can use, is predicted to bring 200,000 target tokens to a mean loss "
        "of 0.05 nats: it asks for about "
    )
    assert result.reason.endswith("Adapt more modules or layers, or split the set over several adapters.")
    assert result.lora_config is None
    assert result.cost is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_an_interval_may_reach_beyond_the_largest_rank():
    result = planned(tokens=12_000, placement=replace(TINY, d_in=planned(tokens=12_000).rank.value))
    assert result.rank.value == result.largest_rank
    assert result.rank.high is None
    assert result.reason is None


def test_extrapolation_is_said():
    assert planned(tokens=1000, observed=[(0.5, 1.0)]).extrapolates is None
    longer = planned(tokens=80_000)
    assert longer.extrapolates.startswith(
        "Outside what was measured: 80,000 target tokens (fitted: 500 to 8,000); rank "
    )
    assert longer.extrapolates.endswith("The interval assumes that the law goes on unchanged.")
    borrowed = planned(default_law(), tokens=1000, loss_init=12.3, placement=TINY)
    assert "adapter parameters (fitted: 8,192 to 196,608)" in planned(default_law(), tokens=9999).extrapolates
    assert borrowed.extrapolates is None


def test_a_doubtful_law_is_called_doubtful():
    law = fit_law(read_points(DATA / "tiny_points.csv"))
    caveats = planned(law, tokens=64, loss_init=11.2).caveats
    assert caveats[0].startswith("The law this rests on is doubtful. Not identifiable: alpha's 95% interval reaches 0")


def test_a_law_without_error_bars_leaves_every_rank_open():
    exact = fit_law(simulate(PAPER, ranks=(1, 8), lengths=(500, 4000), with_final=False))
    assert exact.covariance is None
    rank = planned(exact).rank
    assert (rank.low, rank.high) == (1, None)
    assert rank.value == smallest_rank(PAPER, 3000, 12.0, DEFAULT_LOSS)


def test_other_data_than_the_laws_is_noticed():
    assert planned(loss_init=11.5).caveats == ()
    (caveat,) = planned(loss_init=3.0).caveats
    assert caveat.startswith(
        "These targets start at 3.00 nats a token, the law's cells at 12.00: another kind of data."
    )


def test_targets_the_base_already_knows():
    result = planned(loss_init=0.04)
    assert result.rank.value == 1
    assert any("already gives these targets the loss that is needed" in caveat for caveat in result.caveats)


def test_the_papers_placement_is_not_promised_to_peft():
    assert any("not one PEFT can build" in caveat for caveat in planned(placement=TINY, tokens=600).caveats)
    assert planned(placement=TINY, tokens=600).lora_config is None
    assert not any("PEFT" in caveat for caveat in planned().caveats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"records": 0}, r"asked for 0 records with 3000 target tokens"),
        ({"records": 9, "tokens": 5}, r"asked for 9 records with 5 target tokens\. .* each has at least one"),
        ({"loss_init": 0.0}, r"loss_init is 0\.0: .* is above 0"),
        ({"loss_init": math.nan}, r"loss_init is nan"),
        ({"target": 1.5}, r"target is 1\.5: it is the share to be recalled"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        planned(**change)


def test_a_law_without_numbers_plans_nothing():
    with pytest.raises(FitError, match="All cells have one rank"):
        planned(fit_law(simulate(BOUNDED, ranks=(4,)), "bounded"))


# --- the loss that recall needs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observed", "nats", "most"),
    [
        ([], 0.05, 0.05),
        ([(0.003, 1.0), (0.02, 1.0)], 0.05, 0.05),
        ([(0.003, 1.0), (0.02, 1.0), (0.2, 0.8)], 0.05, 0.2),
        ([(0.02, 1.0), (0.03, 0.99), (0.2, 0.8)], 0.02, 0.03),
        ([(0.2, 1.0), (0.4, 0.7)], 0.2, 0.4),
        ([(0.2, 1.0), (0.1, 0.9), (0.01, 1.0)], 0.05, 0.1),
        ([(0.3, 0.9), (0.4, 0.7)], 0.05, 0.05),
        ([(0.003, 0.98), (0.02, 0.9)], 0.003, 0.003),
    ],
)
def test_loss_that_full_recall_needs(observed, nats, most):
    needed = loss_needed(1.0, observed)
    assert (needed.nats, needed.most) == (nats, most)


def test_loss_needed_says_where_it_comes_from():
    assert loss_needed(1.0).why == "0.05 nats, memlaw's default: no cell to learn from."
    assert loss_needed(1.0, [(0.2, 1.0), (0.4, 0.7)]).why == (
        "0.2 nats: cells that ended at 0.2 recalled 100%; at 0.4 they no longer did."
    )
    assert loss_needed(0.9, [(0.003, 0.8)]).why == (
        "0.003 nats, a guess: no cell recalled 90%, not even the one that ended at 0.003."
    )


@given(st.lists(st.tuples(st.floats(1e-4, 5), st.floats(0, 1)), max_size=20), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_share_never_allows_a_larger_loss(observed, one, other):
    low, high = sorted((one, other))
    assert 0 < loss_needed(high, observed).nats <= loss_needed(low, observed).nats
    assert loss_needed(low, observed).nats <= loss_needed(low, observed).most


# --- what comes with it ----------------------------------------------------------------------------------------------


def test_the_configuration_is_the_placements_at_the_recommended_rank():
    result = planned(scale=2.0)
    assert result.lora_config == {"r": result.rank.value, "lora_alpha": 2 * result.rank.value}


def test_the_configuration_of_a_real_placement_pastes_into_peft():
    from peft import LoraConfig

    from memlaw.adapter import Placement, Site

    placement = Placement(("down_proj",), (24,), (Site("model.layers.24.mlp.down_proj", 24, 12288, 4096),))
    result = planned(placement=placement)
    config = LoraConfig(**result.lora_config)
    assert config.r == result.rank.value == config.lora_alpha
    assert set(config.target_modules) == {"down_proj"}
    assert config.layers_to_transform == [24]


def test_cost_counts_what_is_trained():
    result = planned(placement=replace(DOWN, count=2), work=TrainingWork(2_000_000, tokens_per_step=500, steps=100))
    assert result.cost.adapter_parameters == result.rank.value * 2 * (12288 + 4096)
    assert result.cost.adapter_bytes == 4 * result.cost.adapter_parameters
    assert result.cost.training_flops == 6 * 2_000_000 * 500 * 100
    assert planned().cost.training_flops is None


def test_bits_are_what_the_base_would_need_unless_given():
    assert planned(tokens=1000, loss_init=12.0).bits == pytest.approx(1000 * 12.0 / LN2)
    assert planned(bits=33.2).bits == 33.2


def test_the_plan_has_the_keys_others_rely_on():
    values = planned().to_dict()
    assert values.keys() >= {"records", "tokens", "bits", "rank", "law", "lora_config"}
    assert values["rank"].keys() == {"value", "low", "high"}
    assert values["law"]["source"] == "simulated cells"
    assert values["law"]["borrowed"] is False
    json.dumps(values, allow_nan=False)


# --- the law of nobody in particular ---------------------------------------------------------------------------------


def test_the_default_law_is_the_published_one_and_says_it_is_borrowed():
    law = default_law()
    assert (law.form, law.axis, law.status, law.n) == ("bounded", "parameters", "ok", 70)
    assert law.rank_for(4000) / 8192 == pytest.approx(fit_law(published.points(), "bounded").rank_for(4000), rel=1e-4)
    result = planned(law, tokens=1000, loss_init=12.3)
    assert result.law.borrowed
    assert "arXiv 2605.30260" in result.law.source
    assert result.caveats[0].startswith("Borrowed: this law was fitted to Qwen3-8B, not to this model.")
    assert "memlaw probe" in result.caveats[0]
    assert result.rank.high / result.rank.value > 3


def test_the_borrowed_interval_holds_for_a_model_a_thousand_times_smaller():
    """Where the tiny model's measured loss falls under ln 2, in a probe that the law has never seen."""
    law, cells = default_law(), read_points(DATA / "tiny_reachable_points.csv")
    for length in (16, 32, 64, 96, 128, 192):
        row = [p for p in cells if p.length == length]
        ranks, losses = np.log([p.rank for p in row]), np.log([p.final_loss for p in row])
        crosses = math.exp(np.interp(-math.log(LN2), -losses, ranks))
        found = planned(law, tokens=length, loss_init=row[0].loss_init, placement=TINY).saturation
        assert found.low <= crosses <= found.high
