from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.drawings import drawn, held, texts
from helpers.sample import cell, diverged
from memlaw.core.points import LawPoint
from memlaw.core.recall import LN2
from memlaw.law import published
from memlaw.law.bits import ANCHORS, in_bits, memory_bits
from memlaw.report import figures


def test_a_curve_of_bits_has_one_series_a_length_by_rank():
    curve = figures.bits_curve([held(4, 16, 1.0, 16), held(1, 64, 5.0), held(1, 16, 3.0), cell(2, 16), diverged(8, 16)])
    assert [series.length for series in curve.series] == [16, 64]
    assert curve.series[0].rank.tolist() == [1, 4]
    np.testing.assert_allclose(curve.series[0].stored, [16 * 4 / LN2 / 256, 16 * 6 / LN2 / 1024])
    np.testing.assert_allclose(curve.series[0].certified, [0, 16 * 7 / LN2 / 1024])
    assert curve.published.shape == (0, 2)


def test_a_curve_of_bits_averages_seeds():
    cells = [held(2, 16, 1.0, 16, seed=0), held(2, 16, 2.0, 0, seed=1)]
    (series,) = figures.bits_curve(cells).series
    assert series.stored.tolist() == [pytest.approx(np.mean([memory_bits(c).bits_per_parameter for c in cells]))]
    assert series.certified.tolist() == [pytest.approx(16 * 7 / LN2 / 512 / 2)]


def test_bits_without_certificates_have_no_certified_part():
    (series,) = figures.bits_curve([held(2, 16, 1.0, certified_tokens=None)]).series
    assert np.isnan(series.certified).all()


def test_cells_without_bits_give_no_series():
    assert figures.bits_curve([cell(1, 16), diverged(2, 16)]).series == ()


def test_the_published_points_are_a_series_of_their_own():
    points = published.points()
    curve = figures.bits_curve([], points)
    assert curve.published.shape == (len(points), 2)
    at = next(row for row, point in enumerate(points) if (point.rank, point.length) == (4, 1000))
    expected = in_bits(1000, math.log(151_936) - points[at].final_loss) / (2 * 4096 * 4)
    assert curve.published[at].tolist() == [4, pytest.approx(expected)]
    assert (curve.published[:, 1] < 2).all()
    assert math.isnan(figures.bits_curve([], [LawPoint(4, 1000, 5.0)]).published[0, 1])


def test_a_figure_of_bits_names_its_lengths_and_what_is_published():
    svg = drawn(figures.draw_bits, figures.bits_curve([held(1, 16, 3.0), held(2, 48, 2.0)], published.points()))
    anchors = {f"{anchor.range}: {anchor.name}" for anchor in ANCHORS}
    assert {"rank r", "bits per parameter", "16", "48", "Qwen3-8B,", "published", *anchors} <= set(texts(svg))
    assert "published" not in texts(drawn(figures.draw_bits, figures.bits_curve([held(1, 16, 3.0)])))
