from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from memlaw.errors import ConfigError
from memlaw.losses import memft_loss, token_weights, weighted_mean
from memlaw.records import LN2

LABELS = torch.tensor([[-100, -100, 3, 4, 5], [-100, 1, 2, -100, -100]])


def logits(scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_sft_is_cross_entropy_over_the_targets() -> None:
    expected = F.cross_entropy(logits()[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(memft_loss(logits(), LABELS, method="sft"), expected)


def test_only_threshold_is_the_mean_over_tokens_at_or_below_one_half() -> None:
    p = logits()[:, :-1].softmax(-1)
    values = [float(p[b, t, LABELS[b, t + 1]]) for b in range(2) for t in range(4) if LABELS[b, t + 1] != -100]
    below = [-math.log(v) for v in values if v <= 0.5]
    assert 0 < len(below) < len(values)
    assert float(memft_loss(logits(), LABELS)) == pytest.approx(sum(below) / len(below), rel=1e-6)


def test_tokens_above_one_half_get_no_gradient() -> None:
    scores = logits().requires_grad_(True)
    memft_loss(scores, LABELS).backward()
    p = logits()[:, :-1].softmax(-1)
    assert scores.grad is not None
    for b in range(2):
        for t in range(4):
            trained = LABELS[b, t + 1] != -100 and p[b, t, LABELS[b, t + 1]] <= 0.5
            assert bool(scores.grad[b, t].any()) == bool(trained)


def sure() -> torch.Tensor:
    """Logits under which every target of LABELS has p near 1."""
    return (20.0 * F.one_hot(LABELS.roll(-1, dims=1).clamp(min=0), 8)).requires_grad_(True)


def test_zero_rule_gives_zero_and_fallback_gives_sft_once_nothing_is_left() -> None:
    scores = sure()
    loss = memft_loss(scores, LABELS, rule="zero")
    loss.backward()
    assert loss == 0
    assert not scores.grad.any()
    torch.testing.assert_close(memft_loss(sure(), LABELS, rule="fallback"), memft_loss(sure(), LABELS, method="sft"))


def test_a_tie_at_one_half_is_still_trained() -> None:
    nll = torch.tensor([LN2], dtype=torch.float64)
    assert token_weights(nll, torch.tensor([True]), method="ot").tolist() == [1.0]


def test_an_infinite_loss_at_a_token_without_weight_does_not_spoil_the_mean() -> None:
    assert weighted_mean(torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 0.0])) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), min_size=1, max_size=20))
def test_the_loss_of_many_sets_at_once_is_the_loss_of_each(rows: list[tuple[float, bool]]) -> None:
    nll = torch.tensor([value for value, _ in rows], dtype=torch.float64)
    target = torch.tensor([is_target for _, is_target in rows])
    both = torch.stack([nll, nll.flip(0)]), torch.stack([target, target.flip(0)])
    for method in ("sft", "ot"):
        for rule in ("zero", "fallback"):
            stacked = weighted_mean(both[0], token_weights(*both, method=method, rule=rule))
            alone = weighted_mean(nll, token_weights(nll, target, method=method, rule=rule))
            torch.testing.assert_close(stacked, alone.expand(2))


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="known: sft, ot"):
        memft_loss(logits(), LABELS, method="rlhf")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="between 0 and 1"):
        memft_loss(logits(), LABELS, threshold=1.5)
