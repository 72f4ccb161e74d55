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
from memlaw.model.reach import reach, reach_bounds, reachable_ids, reachable_tokens


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
