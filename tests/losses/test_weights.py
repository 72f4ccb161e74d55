"""Token weights as pure functions, against the formulas for single tokens and single samples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import slow_losses as reference
from memlaw.core.errors import ConfigError
from memlaw.core.recall import LN2
from memlaw.losses import (
    Samples,
    focus_factor,
    pointwise_weights,
    position_factor,
    token_weights,
    weighted_mean,
    weighted_terms,
)

LOSSES = st.lists(st.lists(st.floats(0, 3), min_size=1, max_size=12), min_size=1, max_size=5)


def flat(losses: list[list[float]]) -> tuple[Tensor, Samples]:
    nll = torch.tensor([value for sample in losses for value in sample], dtype=torch.float64)
    lengths = torch.tensor([len(sample) for sample in losses])
    return nll, Samples(torch.arange(len(losses)).repeat_interleave(lengths), len(losses))


def test_a_tie_at_one_half_is_still_trained() -> None:
    nll = torch.tensor([LN2, LN2 - 1e-9, LN2 + 1e-9], dtype=torch.float64)
    assert pointwise_weights(nll, every=False, critical=LN2).tolist() == [1.0, 0.0, 1.0]


def test_each_token_may_have_a_method_and_a_threshold_of_its_own() -> None:
    nll = torch.tensor([0.1, 0.1, 0.5, 0.5])
    every = torch.tensor([True, False, False, False])
    critical = torch.tensor([LN2, LN2, LN2, LN2 - 0.3])
    assert pointwise_weights(nll, every=every, critical=critical).tolist() == [1.0, 0.0, 0.0, 1.0]


def test_a_nan_loss_is_not_recalled() -> None:
    assert pointwise_weights(torch.tensor([torch.nan]), every=False, critical=LN2).tolist() == [1.0]


@settings(deadline=None)
@given(LOSSES, st.floats(0, 5), st.floats(0, 3))
def test_position_and_focus_equal_their_formulas(losses: list[list[float]], decay: float, power: float) -> None:
    nll, samples = flat(losses)
    found = position_factor(nll, samples, critical=LN2, decay=decay)
    found = found * focus_factor(nll, samples, critical=LN2, exponent=power)
    seen = [[(value, True) for value in sample] for sample in losses]
    wanted = [reference.sample_weights(sample, method="sft", position=decay, focus=power) for sample in seen]
    flattened = torch.tensor([weight for sample in wanted for weight in sample], dtype=torch.float64)
    torch.testing.assert_close(found, flattened, rtol=1e-12, atol=0)


def test_position_spends_the_step_on_the_first_stubborn_tokens() -> None:
    nll, samples = flat([[1.0, 0.1, 1.0, 1.0], [0.1, 1.0], [0.1]])
    found = position_factor(nll, samples, critical=LN2, decay=2.0)
    wanted = [1, 1, math.exp(-1), math.exp(-2), 1, 1, 1]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@settings(deadline=None)
@given(LOSSES)
def test_with_focus_one_every_unfinished_sample_counts_the_same(losses: list[list[float]]) -> None:
    nll, samples = flat(losses)
    weights = pointwise_weights(nll, every=False, critical=LN2)
    weights = weights * focus_factor(nll, samples, critical=LN2, exponent=1.0)
    for number, sample in enumerate(losses):
        total = float(weights[samples.index == number].sum())
        assert total == pytest.approx(1.0 if max(sample) >= LN2 else 0.0)


@settings(deadline=None)
@given(LOSSES)
def test_a_factor_that_is_off_is_one(losses: list[list[float]]) -> None:
    nll, samples = flat(losses)
    assert (position_factor(nll, samples, critical=LN2, decay=0.0) == 1).all()
    assert (focus_factor(nll, samples, critical=LN2, exponent=0.0) == 1).all()


@settings(deadline=None)
@given(LOSSES, st.floats(0.1, 3))
def test_modifiers_may_differ_from_token_to_token(losses: list[list[float]], strength: float) -> None:
    """As in a stack of adapters."""
    nll, samples = flat([*losses, *losses])
    own = torch.cat([torch.zeros(len(nll) // 2), torch.full((len(nll) // 2,), strength)]).double()
    for factor, name in ((position_factor, "decay"), (focus_factor, "exponent")):
        mixed = factor(nll, samples, critical=LN2, **{name: own})  # type: ignore[arg-type]
        alone = factor(*flat(losses), critical=LN2, **{name: strength})  # type: ignore[arg-type]
        torch.testing.assert_close(mixed, torch.cat([torch.ones_like(alone), alone]))


@settings(deadline=None)
@given(LOSSES)
def test_ranks_and_totals_stay_inside_their_sample(losses: list[list[float]]) -> None:
    nll, samples = flat(losses)
    chosen = nll >= LN2
    picked = [[value >= LN2 for value in sample] for sample in losses]
    assert samples.totals(chosen).tolist() == [sum(sample) for sample in picked for _ in sample]
    assert samples.ranks(chosen).tolist() == [sum(sample[:t]) for sample in picked for t in range(len(sample))]


def test_an_infinite_loss_at_a_token_without_weight_does_not_spoil_the_mean() -> None:
    nll, weights = torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 0.0])
    assert weighted_mean(nll, weights) == pytest.approx(1.0)
    assert weighted_terms(nll, weights).tolist() == [1.0, 0.0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), min_size=1, max_size=20))
def test_the_weights_of_many_sets_at_once_are_those_of_each(rows: list[tuple[float, bool]]) -> None:
    nll = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    target = torch.tensor([is_target for _, is_target in rows])
    both = torch.stack([nll, nll.flip(0)]), torch.stack([target, target.flip(0)])
    for method in ("sft", "ot", "curriculum"):
        for rule in ("zero", "fallback"):
            stacked = weighted_mean(both[0], token_weights(*both, method=method, rule=rule))
            alone = weighted_mean(nll, token_weights(nll, target, method=method, rule=rule))
            torch.testing.assert_close(stacked, alone.expand(2))
            kept = [value for value, asked in rows if asked]
            weights = [weight for value in kept for weight in reference.sample_weights([(value, True)], method=method)]
            assert float(alone) == pytest.approx(reference.loss(kept, weights, rule), rel=1e-12)


def test_set_weights_are_refused_for_a_method_that_needs_more_than_losses() -> None:
    with pytest.raises(ConfigError, match="its weights come from a `WindowPass`"):
        token_weights(torch.ones(3), torch.ones(3, dtype=torch.bool), method="sw")
    with pytest.raises(ConfigError, match="Unknown method 'swift'. Did you mean sft"):
        token_weights(torch.ones(3), torch.ones(3, dtype=torch.bool), method="swift")  # type: ignore[arg-type]
