from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.drawings import SVG, drawn, ladder, texts
from helpers.sample import many, recall
from memlaw.core.errors import DataError
from memlaw.core.recall import LN2
from memlaw.report import figures


@given(st.lists(st.floats(0, 5), min_size=1, max_size=60), st.integers(1, 70), st.booleans())
def test_a_strip_covers_every_position_once_and_shows_the_weakest_token(losses, bins, decoded):
    record = recall({"a": losses}, decoded=decoded).items[0]
    strip = figures.strip_curve(record, bins=bins)
    assert len(strip.p) == min(bins, len(losses))
    covered = [position for start, stop in zip(strip.start, strip.stop, strict=True) for position in range(start, stop)]
    assert covered == list(range(len(losses)))
    for index, (start, stop) in enumerate(zip(strip.start, strip.stop, strict=True)):
        assert strip.p[index] == pytest.approx(math.exp(-max(losses[start:stop])))
        assert strip.ordered[index] == all(loss < LN2 for loss in losses[start:stop])
        assert strip.wrong[index] == (decoded and any(loss >= LN2 for loss in losses[start:stop]))


def test_a_strip_draws_a_bar_a_token_and_marks_the_first_failure():
    failing, fine = recall({"a": [0.1, 3.0, 0.1]}).items[0], recall({"a": [0.1, 0.2, 0.1]}).items[0]
    assert figures.strip_curve(failing).first_failure == 1
    assert figures.strip_curve(fine).first_failure is None
    counts = [
        len(list(drawn(figures.draw_strip, figures.strip_curve(item)).iter(f"{SVG}use"))) for item in (failing, fine)
    ]
    assert counts[0] == counts[1] + 1


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 90), st.integers(1, 50), st.integers(0, 10**6))
def test_the_failure_histogram_counts_every_record_in_its_bin(records, length, bins, seed):
    report = many(records, length, seed=seed, share_stubborn=0.1)
    histogram = figures.failure_histogram(report, bins=bins)
    assert len(histogram.first_failure) <= bins
    assert histogram.edges[-1] >= length
    for counts, name in (
        (histogram.first_failure, "first_failure"),
        (histogram.earliest_stubborn, "earliest_stubborn"),
    ):
        positions = [getattr(item, name) for item in report.items if getattr(item, name) is not None]
        for index in range(len(counts)):
            inside = [at for at in positions if histogram.edges[index] <= at < histogram.edges[index + 1]]
            assert counts[index] == len(inside)
        assert counts.sum() == len(positions)


def test_without_decoding_only_stubborn_tokens_are_drawn():
    histogram = figures.failure_histogram(recall({"a": [0.1, 2.0], "b": [0.1]}, decoded=False))
    assert not histogram.decoded
    assert histogram.earliest_stubborn.tolist() == [0, 1]
    svg = drawn(figures.draw_failures, histogram)
    assert "earliest stubborn token" in texts(svg)
    assert "first failure of greedy decoding" not in texts(svg)


def test_a_ladder_is_ranks_by_positions():
    curve = ladder(r8=[0.1, 0.2, 0.1], r1=[3.0, LN2, 0.1])
    assert curve.ranks.tolist() == [1, 8]
    np.testing.assert_allclose(curve.p, np.exp([[-3.0, -LN2, -0.1], [-0.1, -0.2, -0.1]]))
    assert curve.ordered.tolist() == [[False, False, True], [True, True, True]]


def test_a_ladder_of_different_records_is_refused():
    with pytest.raises(DataError, match="of the record have 1 and 2 target tokens"):
        ladder(r1=[0.1], r2=[0.1, 0.2])
    with pytest.raises(DataError, match="have no target tokens"):
        figures.ladder_curve({})


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 10**6))
def test_the_scatter_counts_every_failing_record_once(records, length, seed):
    report = many(records, length, seed=seed, share_stubborn=0.1)
    scatter = figures.failure_scatter(report)
    assert scatter.records.sum() == sum(item.first_failure is not None for item in report.items)
    for early, late, count in zip(scatter.earliest_stubborn, scatter.first_failure, scatter.records, strict=True):
        pairs = [(item.earliest_stubborn, item.first_failure) for item in report.items]
        assert pairs.count((early, late)) == count


def test_a_convergence_curve_is_sorted_by_step_and_finite():
    (curve,) = figures.convergence_curve({"rank 2": [(3, 1.0), (1, 4.0), (2, math.nan)]})
    assert (curve.name, curve.steps.tolist(), curve.loss.tolist()) == ("rank 2", [1, 3], [4.0, 1.0])
