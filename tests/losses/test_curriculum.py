"""The curriculum: which samples each epoch, and each step, may see."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlaw.core.errors import ConfigError
from memlaw.losses import CURRICULA, curriculum_order, curriculum_rows, exposed

SHORT = (20, 40, 60, 80, 300)


@pytest.mark.parametrize(
    ("tokens", "rate", "epochs", "boundaries", "batch", "accumulation"),
    [
        (1000, 1e-2, 300, (20, 40, 60, 80, 300), 10, 1),
        (2000, 1e-2, 300, (20, 40, 60, 80, 300), 10, 1),
        (4000, 1e-2, 350, (30, 60, 90, 120, 350), 10, 1),
        (8000, 7e-3, 350, (30, 60, 90, 120, 350), 20, 2),
        (12000, 5e-3, 500, (60, 120, 180, 240, 500), 40, 2),
        (16000, 5e-3, 600, (80, 160, 240, 320, 600), 40, 2),
        (24000, 5e-3, 600, (80, 160, 240, 320, 600), 40, 2),
        (32000, 5e-3, 700, (100, 200, 300, 400, 700), 40, 2),
    ],
)
def test_the_published_table(
    tokens: int, rate: float, epochs: int, boundaries: tuple[int, ...], batch: int, accumulation: int
) -> None:
    found = CURRICULA[tokens]
    assert (found.learning_rate, found.epochs, found.boundaries) == (rate, epochs, boundaries)
    assert (found.batch_size, found.accumulation) == (batch, accumulation)


@pytest.mark.parametrize("tokens", CURRICULA)
def test_the_exposed_samples_of_every_epoch_are_the_published_ones(tokens: int) -> None:
    published, count = CURRICULA[tokens], tokens // 10
    seen = [exposed(count, epoch, published.boundaries) for epoch in range(published.epochs)]
    fifths = [end - start for start, end in itertools.pairwise((0, *published.boundaries))]
    wanted = [n * count // 5 for n, epochs in enumerate(fifths, start=1) for _ in range(epochs)]
    assert seen == wanted


@pytest.mark.parametrize(
    ("count", "epoch", "wanted"),
    [(100, 0, 20), (100, 19, 20), (100, 20, 40), (100, 79, 80), (100, 80, 100), (100, 299, 100), (100, 999, 100),
     (7, 0, 1), (7, 20, 2), (3, 0, 1), (1, 0, 1), (0, 0, 0)],
)  # fmt: skip
def test_shares_are_rounded_down_but_never_to_zero(count: int, epoch: int, wanted: int) -> None:
    assert exposed(count, epoch, SHORT) == wanted


def test_a_share_that_no_float_can_hold_loses_no_sample() -> None:
    assert exposed(100, 0, (1, 2), (0.29, 1.0)) == 29


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 400))
def test_what_was_exposed_stays_exposed(count: int, epoch: int) -> None:
    assert exposed(count, epoch, SHORT) <= exposed(count, epoch + 1, SHORT) <= count


def test_the_order_is_shuffled_once_and_seeded() -> None:
    order = curriculum_order(50, seed=3)
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))
    assert order.equal(curriculum_order(50, seed=3))
    assert not order.equal(curriculum_order(50, seed=4))


def test_the_steps_of_the_published_epochs_are_their_batches() -> None:
    """100 records in batches of 10: 20 epochs each of 2, 4, 6 and 8 batches, then 220 of 10."""
    order = curriculum_order(100, seed=42).tolist()
    wanted = [order[start : start + 10] for epoch in range(300) for start in range(0, exposed(100, epoch, SHORT), 10)]
    assert len(wanted) == 2600
    assert [rows.tolist() for rows in curriculum_rows(100, 10, 2600, boundaries=SHORT, seed=42)] == wanted


@settings(deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 70), steps=st.integers(1, 200), seed=st.integers(0, 9))
def test_every_budget_has_its_steps_of_full_batches(count: int, size: int, steps: int, seed: int) -> None:
    batches = [rows.tolist() for rows in curriculum_rows(count, size, steps, boundaries=SHORT, seed=seed)]
    assert len(batches) == steps
    assert all(len(rows) == size for rows in batches)
    order = curriculum_order(count, seed=seed).tolist()
    shares = [exposed(count, epoch, SHORT) for epoch in range(300)]
    ends = list(itertools.accumulate(shares))
    for step, rows in enumerate(batches):
        share = next(n for n, end in zip(shares, ends, strict=True) if step * ends[-1] < steps * end)
        assert set(rows) <= set(order[:share])
        assert len(set(rows)) == min(size, share)


def test_half_the_steps_make_every_stage_half_as_long() -> None:
    def stages(steps: int) -> list[int]:
        order = curriculum_order(100, seed=0).tolist()
        furthest = 0
        found = [0] * 5
        for rows in curriculum_rows(100, 100, steps, boundaries=SHORT, seed=0):
            furthest = max(order.index(row) for row in rows.tolist())
            found[furthest // 20] += 1
        return found

    assert stages(260) == [4, 8, 12, 16, 220]
    assert stages(130) == [2, 4, 6, 8, 110]
    assert sum(stages(7)) == 7


@pytest.mark.parametrize(
    ("boundaries", "ratios", "message"),
    [
        (
            (20, 40),
            (0.2, 0.4, 1.0),
            "2 boundaries for 3 exposed shares (0.2, 0.4, 1): give one boundary for each share",
        ),
        ((20, 20, 300), (0.2, 0.4, 1.0), "The boundaries 20, 20, 300 must increase, from above 0"),
        ((0, 20, 300), (0.2, 0.4, 1.0), "must increase, from above 0"),
        ((40, 20, 300), (0.2, 0.4, 1.0), "must increase, from above 0"),
        ((20, 40, 300), (0.2, 0.4, 1.1), "The exposed shares 0.2, 0.4, 1.1 must increase, from above 0 to at most 1."),
        ((20, 40, 300), (0.4, 0.2, 1.0), "must increase"),
    ],
)
def test_a_schedule_that_does_not_rise_is_refused(
    boundaries: tuple[int, ...], ratios: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        exposed(100, 0, boundaries, ratios)
    assert message in str(refused.value)


def test_rows_are_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="2 boundaries for 5 exposed shares"):
        next(curriculum_rows(10, 2, 5, boundaries=(1, 2), seed=0))
