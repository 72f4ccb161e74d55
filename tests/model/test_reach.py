"""Reach: compared with plain searches, its proof, and random targets drawn by it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import tiny
from helpers.heads import probabilities
from memlaw.core.errors import MemlawError
from memlaw.model.head import FrozenHead, frozen_head
from memlaw.model.reach import reach, reach_bounds, reach_by_lines, reachable_ids, reachable_tokens


def random_head(vocab: int, width: int, seed: int, spread: float = 2.0, **kwargs: Any) -> FrozenHead:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return FrozenHead(
        weight=spread * draw(vocab, width) / math.sqrt(width),
        norm_weight=1 + 0.3 * draw(width),
        norm_bias=0.3 * draw(width) if kwargs.get("norm") == "layer" else None,
        bias=0.5 * draw(vocab) if kwargs.pop("with_bias", False) else None,
        **kwargs,
    )


def circle(points: int = 20_000) -> Tensor:
    angle = torch.arange(points) * (2 * math.pi / points)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def globe(points: int = 200_000) -> Tensor:
    """Points spread evenly over the sphere in three dimensions (Fibonacci lattice)."""
    k = torch.arange(points, dtype=torch.float64) + 0.5
    height = 1 - 2 * k / points
    angle = math.pi * (1 + math.sqrt(5)) * k
    flat = (1 - height.square()).sqrt()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], dim=1).float()


def centred_circle() -> Tensor:
    """Unit vectors of mean zero in three dimensions: the possible outputs of LayerNorm."""
    plane = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    return circle() @ (plane / plane.norm(dim=1, keepdim=True))


CASES = {
    "rms in two dimensions": (circle, {}, 2),
    "rms in three dimensions": (globe, {}, 3),
    "with a bias in the head": (circle, {"with_bias": True}, 2),
    "layer norm": (centred_circle, {"norm": "layer"}, 3),
    "layer norm with a bias in the head": (centred_circle, {"norm": "layer", "with_bias": True}, 3),
    "soft-capped": (circle, {"softcap": 2.0}, 2),
    "soft-capped in three dimensions": (globe, {"softcap": 3.0}, 3),
    "scaled logits": (circle, {"scale": 0.3}, 2),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", CASES)
def test_reach_is_the_largest_probability_a_search_of_the_whole_sphere_finds(case: str, seed: int) -> None:
    points, options, width = CASES[case]
    head = random_head(7, width, seed, **options)
    searched = probabilities(head, points()).amax(dim=0)
    torch.testing.assert_close(reach(head), searched, atol=3e-4, rtol=0)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(2, 24), vocab=st.integers(2, 40))
def test_no_direction_beats_the_proven_bound(norm: Any, seed: int, width: int, vocab: int) -> None:
    head = random_head(vocab, width, seed, norm=norm)
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(2000, width, generator=generator, dtype=torch.float64)
    if norm == "layer":
        u = u - u.mean(dim=1, keepdim=True)
    u = u / u.norm(dim=1, keepdim=True)
    bounds = reach_bounds(head)
    best = probabilities(head, u.float()).amax(dim=0)
    assert (best <= bounds.upper + 1e-5).all()
    assert (bounds.lower <= bounds.upper + 1e-5).all()


def test_a_reach_on_the_surface_is_proven_within_the_tolerance() -> None:
    # More rows than dimensions, far from the origin: the best u of each is on the sphere, and the
    # two bounds meet.
    head = random_head(300, 64, seed=0, spread=1.2)
    bounds = reach_bounds(head, tolerance=1e-4)
    assert (bounds.upper - bounds.lower).max() <= 1e-4
    assert bounds.lower.min() < 0.7 < 0.99 < bounds.lower.max()


def test_a_token_surrounded_by_others_is_proven_unreachable() -> None:
    # The fifth row is the mean of the other four, so one of them is always ahead of it.
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    bounds = reach_bounds(FrozenHead(5 * torch.cat([corners, corners.mean(dim=0, keepdim=True)])))
    assert bounds.upper[4] <= 0.5
    assert bounds.upper[4] == pytest.approx(0.2, abs=1e-3)  # u = 0 would make all five equal
    assert (bounds.lower[:4] > 0.99).all()


def test_twins_share_what_there_is() -> None:
    weight = torch.eye(4, 8) * 50
    weight[3] = weight[2]
    torch.testing.assert_close(reach(FrozenHead(weight)), torch.tensor([1.0, 1.0, 0.5, 0.5]), atol=1e-4, rtol=0)


def test_a_head_of_zeros_gives_every_token_the_same() -> None:
    for norm in ("rms", "layer"):
        head = FrozenHead(torch.zeros(4, 3), norm=norm)  # type: ignore[arg-type]
        torch.testing.assert_close(reach(head), torch.full((4,), 0.25))
        capped = FrozenHead(torch.zeros(4, 3), norm=norm, softcap=5.0)  # type: ignore[arg-type]
        torch.testing.assert_close(reach(capped), torch.full((4,), 0.25))


def test_a_soft_cap_limits_every_token() -> None:
    head = random_head(100, 64, seed=1, spread=50.0, softcap=1.0)
    bounds = reach_bounds(head)
    assert bounds.lower.max() < math.exp(1) / (math.exp(1) + 99 * math.exp(-1)) + 1e-6
    assert (bounds.upper == 1).all()


def test_chunks_and_subsets_do_not_change_the_answer() -> None:
    head = random_head(64, 16, seed=3)
    whole = reach(head)
    torch.testing.assert_close(reach(head, chunk_elements=64 * 5), whole, atol=1e-4, rtol=0)
    asked = [40, 2, 63, 2]
    torch.testing.assert_close(reach(head, asked), whole[asked], atol=1e-4, rtol=0)
    torch.testing.assert_close(reach(head, torch.tensor(asked)), whole[asked], atol=1e-4, rtol=0)
    assert reach(head, []).shape == (0,)


def test_reachable_tokens_keep_the_order_asked_for() -> None:
    head = random_head(64, 8, seed=4)
    values = reach(head)
    line = float(values.median())
    assert reachable_tokens(head, above=line).tolist() == (values > line).nonzero()[:, 0].tolist()
    backwards = list(range(63, -1, -1))
    kept = [token for token in backwards if values[token] > line]
    assert reachable_tokens(head, above=line, tokens=backwards).tolist() == kept


@pytest.mark.parametrize("ids", [[-1], [0, 64]])
def test_ids_beyond_the_head_are_refused(ids: list[int]) -> None:
    with pytest.raises(MemlawError, match="another tokenizer"):
        reach(random_head(64, 8, seed=5), ids)


def test_random_targets_are_drawn_from_ordinary_tokens_that_can_be_reached() -> None:
    base = tiny.base()
    ids = reachable_ids(base)
    assert ids == sorted(set(ids))
    assert not set(ids) & set(base.tokenizer.all_special_ids)
    ordinary = sorted(set(base.tokenizer.get_vocab().values()) - set(base.tokenizer.all_special_ids))
    values = dict(zip(ordinary, reach(frozen_head(base.model), ordinary).tolist(), strict=True))
    assert ids == [token for token in ordinary if values[token] > 0.9]
    assert len(ids) > 10


def test_of_a_large_vocabulary_a_fixed_sample_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    everything = reachable_ids(base)
    monkeypatch.setattr("memlaw.model.reach._JUDGED", 20)
    some = reachable_ids(base)
    assert some == reachable_ids(base)
    assert 0 < len(some) <= 20
    assert set(some) < set(everything)


def slow_reach(rows: Tensor, token: int, softcap: float | None = None) -> float:
    """Largest p of `token` over the circle, searched exhaustively in float64, closer and closer; rows [vocab, 2]."""
    low, high, points = 0.0, 2 * math.pi, 40_000
    for _ in range(3):
        angle = torch.linspace(low, high, points, dtype=torch.float64)
        z = torch.stack([angle.cos(), angle.sin()], dim=1) @ rows.double().T
        log_p = (z if softcap is None else softcap * torch.tanh(z / softcap)).log_softmax(dim=1)[:, token]
        best, step = float(angle[log_p.argmax()]), (high - low) / points
        low, high = best - 2 * step, best + 2 * step
    return float(log_p.max().exp())


def between_giants(lead: float, strength: float = 1.0) -> Tensor:
    """Four rows in the plane. At the first one's own row, and near it, the second is ahead by about 0.78 `lead`.

    The third is the second's opposite, so that the mean of the rows does not give the second away.
    """
    return strength * torch.tensor([[10.0, 8.0], [10 + lead, 0.0], [-10 - lead, 0.0], [0.0, -3.0]])


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize(("lead", "depth"), [(130.0, -1e2), (1300.0, -1e3), (13000.0, -1e4)])
def test_a_token_that_starts_far_below_the_others_still_climbs(lead: float, depth: float, strength: float) -> None:
    rows = between_giants(lead, strength)
    own = rows[0] / rows[0].norm()
    assert float((rows @ own).log_softmax(dim=0)[0]) < 0.9 * strength * depth  # where exp(log p) is 0 in float32
    head = FrozenHead(rows / math.sqrt(2))
    bounds = reach_bounds(head)
    for token in range(4):
        expected = slow_reach(rows, token)
        assert float(bounds.lower[token]) == pytest.approx(expected, abs=1e-4)
        assert float(bounds.upper[token]) >= expected - 1e-5
        assert reachable_tokens(head, above=expected - 1e-3, tokens=[token]).tolist() == [token]
        assert reachable_tokens(head, above=min(1.0, expected + 1e-3), tokens=[token]).tolist() == []


@pytest.mark.parametrize("lead", [130.0, 1300.0, 13000.0])
def test_a_soft_cap_that_hides_the_slope_does_not_hide_the_way(lead: float) -> None:
    # At the first token's own row the others are far beyond the cap, where logits no longer change.
    rows = between_giants(lead)
    bounds = reach_bounds(FrozenHead(rows / math.sqrt(2), softcap=5.0))
    for token in range(4):
        assert float(bounds.lower[token]) == pytest.approx(slow_reach(rows, token, softcap=5.0), abs=1e-3)


def test_a_question_about_one_line_costs_few_evaluations() -> None:
    judged: list[int] = []
    head = random_head(2000, 32, seed=8, spread=3.0)
    line = float(reach(head, range(500)).quantile(0.02))
    kept = reachable_tokens(head, above=line, tokens=range(500), progress=lambda done, _: judged.append(done))
    assert len(kept) == 490
    assert judged[0] > 250  # at the first evaluation
    assert judged == sorted(judged)
    assert judged[-1] == 500


@pytest.mark.parametrize("case", CASES)
def test_bounds_by_lines_are_on_the_side_of_the_reach_itself(case: str) -> None:
    _, options, width = CASES[case]
    for seed in range(5):
        head, lines = random_head(7, width, seed, **options), (0.3, 0.5, 0.553)
        whole, rough = reach_bounds(head), reach_by_lines(head, None, lines)
        for line in lines:
            clear = (whole.lower - line).abs() > 1e-3
            assert ((rough.lower > line) == (whole.lower > line))[clear].all()
            assert ((rough.upper <= line) == (whole.upper <= line))[(whole.upper - line).abs() > 1e-3].all()


def test_progress_counts_every_token_once() -> None:
    told: list[tuple[int, int]] = []
    reach_bounds(random_head(64, 8, seed=9), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (64, 64)
    assert all(0 <= done <= total == 64 for done, total in told)
