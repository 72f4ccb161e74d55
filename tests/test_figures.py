"""Figures are judged by their numbers; of the ink, that it is there, is the same each time, and is one harmless SVG."""

from __future__ import annotations

import math
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample import PowerLaw, cell, diverged, many, points, recall

from memlaw import figures, published
from memlaw.bits import ANCHORS, in_bits, memory_bits
from memlaw.diagnosis import worst
from memlaw.errors import DataError, FitError
from memlaw.law import fit_law
from memlaw.records import LN2, LawPoint

SVG = "{http://www.w3.org/2000/svg}"


def drawn(draw, numbers, **options):
    """The figure, parsed: an ill-formed SVG would not get this far."""
    return ElementTree.fromstring(figures.to_svg(figures.sketch(draw, numbers, **options)))


def texts(svg):
    return [element.text for element in svg.iter(f"{SVG}text")]


# --- the law ---------------------------------------------------------------------------------------------------------


def test_a_rank_curve_has_one_series_a_length_and_the_law_through_it():
    curve = figures.rank_curve(points(), PowerLaw())
    assert (curve.along, curve.held) == ("rank", "length")
    assert [series.held for series in curve.series] == [16, 64, 256]
    for series in curve.series:
        np.testing.assert_array_equal(series.x, [1, 2, 4, 8])
        np.testing.assert_allclose(series.line, [PowerLaw().predict(rank, series.held) for rank in series.line_x])
        inside = ~series.saturated
        at_points = [PowerLaw().predict(rank, series.held) for rank in series.x]
        np.testing.assert_allclose(series.delta_loss[inside], np.array(at_points)[inside])
        assert (series.line_x[0], series.line_x[-1]) == pytest.approx((1, 8))


def test_a_length_curve_has_one_series_a_rank():
    curve = figures.length_curve(list(reversed(points())), PowerLaw())
    assert (curve.along, curve.held) == ("length", "rank")
    assert [series.held for series in curve.series] == [1, 2, 4, 8]
    for series in curve.series:
        np.testing.assert_array_equal(series.x, [16, 64, 256])
        np.testing.assert_allclose(series.line, [PowerLaw().predict(series.held, at) for at in series.line_x])


def test_saturated_cells_are_marked():
    measured = [LawPoint(1, 16, 5.0, 3.0), LawPoint(2, 16, 7.5, 0.5), LawPoint(4, 16, 7.9, None)]
    (series,) = figures.rank_curve(measured).series
    assert series.saturated.tolist() == [False, True, False]
    assert series.line.size == 0


def test_a_law_in_parameters_is_drawn_over_parameters():
    class InParameters:
        def predict(self, size, length):
            return PowerLaw().predict(size / 256, length)

    measured = points()
    by_rank, by_size = (
        figures.rank_curve(measured, PowerLaw()),
        figures.rank_curve(measured, InParameters(), axis="parameters"),
    )
    assert by_size.along == "parameters"
    for series, same in zip(by_size.series, by_rank.series, strict=True):
        np.testing.assert_allclose(series.x, 256 * same.x)
        np.testing.assert_allclose(series.line, same.line)
    agreement = figures.agreement_curve(measured, InParameters(), axis="parameters")
    np.testing.assert_allclose(agreement.predicted, figures.agreement_curve(measured, PowerLaw()).predicted)


def test_a_point_without_parameters_is_named():
    with pytest.raises(FitError, match=r"rank 2, length 16 has no number of parameters.*fit the law in ranks"):
        figures.rank_curve([LawPoint(2, 16, 5.0)], PowerLaw(), axis="parameters")


def test_the_points_of_a_true_law_lie_on_the_diagonal():
    measured = [point for point in points() if point.delta_loss < 9.9]
    agreement = figures.agreement_curve(measured, PowerLaw())
    np.testing.assert_allclose(agreement.predicted, agreement.measured)


def test_a_fitted_law_can_be_drawn():
    fitted = fit_law(points(ranks=(1, 2, 3, 4), lengths=(32, 64, 128, 256)), form="paper")
    agreement = figures.agreement_curve(points(ranks=(1, 2), lengths=(64, 128)), fitted)
    np.testing.assert_allclose(agreement.predicted, agreement.measured, rtol=1e-3)


def test_law_figures_label_their_axes_and_series():
    svg = drawn(figures.draw_law, figures.rank_curve(points(), PowerLaw()))
    assert {"rank r", "ΔL (nats per token)", "length", "16", "64", "256"} <= set(texts(svg))
    svg = drawn(figures.draw_agreement, [("paper form", figures.agreement_curve(points(), PowerLaw()))])
    assert {"measured ΔL (nats per token)", "predicted ΔL (nats per token)", "paper form"} <= set(texts(svg))


# --- grids -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_lengths_by_ranks_and_blank_where_nothing_finished():
    grid = figures.loss_grid([cell(1, 16, 3.0), cell(4, 16, 1.0), cell(1, 64, 5.0), diverged(4, 64)])
    assert grid.ranks.tolist() == [1, 4]
    assert grid.lengths.tolist() == [16, 64]
    np.testing.assert_array_equal(grid.values, [[3.0, 1.0], [5.0, np.nan]])


def test_a_grid_averages_seeds():
    cells = [cell(2, 16, 1.0, acc_token=0.5, seed=0), cell(2, 16, 2.0, acc_token=1.0, seed=1)]
    np.testing.assert_array_equal(figures.loss_grid(cells).values, [[1.5]])
    np.testing.assert_array_equal(figures.accuracy_grid(cells).values, [[0.75]])


def test_accuracy_that_was_not_measured_is_blank():
    grid = figures.accuracy_grid([cell(1, 16, acc_token=None), cell(2, 16, acc_token=0.25)])
    np.testing.assert_array_equal(grid.values, [[np.nan, 0.25]])


def test_a_heatmap_prints_its_values_and_never_rounds_up_to_all():
    svg = drawn(figures.draw_grid, figures.accuracy_grid([cell(1, 16, acc_token=0.999), cell(2, 16, acc_token=1.0)]))
    assert {"99", "100"} <= set(texts(svg))
    svg = drawn(figures.draw_grid, figures.loss_grid([cell(1, 16, 3.126), diverged(2, 16)]))
    assert "3.13" in texts(svg)
    assert "nan" not in texts(svg)


# --- bits ------------------------------------------------------------------------------------------------------------


def held(rank, length, loss_final, certified_tokens=0, **changes):
    return cell(rank, length, loss_final, loss_memoryless=7.0, certified_tokens=certified_tokens, **changes)


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


def test_bits_that_are_only_stored_so_far_as_is_known_have_no_certified_part():
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


# --- tokens ----------------------------------------------------------------------------------------------------------


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
    histogram = figures.failure_curve(report, bins=bins)
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
    histogram = figures.failure_curve(recall({"a": [0.1, 2.0], "b": [0.1]}, decoded=False))
    assert not histogram.decoded
    assert histogram.earliest_stubborn.tolist() == [0, 1]
    svg = drawn(figures.draw_failures, histogram)
    assert "earliest stubborn token" in texts(svg)
    assert "first failure of greedy decoding" not in texts(svg)


# --- the plane -------------------------------------------------------------------------------------------------------


def test_a_power_law_is_a_flat_surface_over_logarithms_with_its_points_on_it():
    plane = figures.plane_surface(points(), PowerLaw())
    size, length = np.meshgrid(plane.size, plane.length)
    np.testing.assert_allclose(plane.predicted, np.log10(14.0) + 0.4 * size - 0.3 * length)
    free = plane.points[~plane.saturated]
    np.testing.assert_allclose(free[:, 2], np.log10(14.0) + 0.4 * free[:, 0] - 0.3 * free[:, 1])
    assert (plane.size[0], plane.size[-1]) == pytest.approx((0, np.log10(8)))


def test_a_plane_leaves_out_what_has_no_logarithm():
    class Negative:
        def predict(self, rank, length):
            return rank - 4.0

    plane = figures.plane_surface([*points(), LawPoint(1, 16, -0.1, 10.1)], Negative())
    assert len(plane.points) == len(points())
    assert np.isnan(plane.predicted).any()
    assert np.isfinite(plane.predicted).any()


# --- ranks -----------------------------------------------------------------------------------------------------------


def ladder(**losses):
    return figures.ladder_curve({int(rank[1:]): recall({"a": nll}).items[0] for rank, nll in losses.items()})


def test_a_ladder_is_ranks_by_positions():
    found = ladder(r8=[0.1, 0.2, 0.1], r1=[3.0, LN2, 0.1])
    assert found.ranks.tolist() == [1, 8]
    np.testing.assert_allclose(found.p, np.exp([[-3.0, -LN2, -0.1], [-0.1, -0.2, -0.1]]))
    assert found.ordered.tolist() == [[False, False, True], [True, True, True]]


def test_a_ladder_of_different_records_is_refused():
    with pytest.raises(DataError, match="at several ranks have 1 and 2 target tokens"):
        ladder(r1=[0.1], r2=[0.1, 0.2])
    with pytest.raises(DataError, match="have no target tokens"):
        figures.ladder_curve({})


# --- failures --------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 10**6))
def test_the_scatter_counts_every_failing_record_once(records, length, seed):
    report = many(records, length, seed=seed, share_stubborn=0.1)
    scatter = figures.failure_scatter(report)
    assert scatter.records.sum() == sum(item.first_failure is not None for item in report.items)
    for early, late, count in zip(scatter.earliest_stubborn, scatter.first_failure, scatter.records, strict=True):
        pairs = [(item.earliest_stubborn, item.first_failure) for item in report.items]
        assert pairs.count((early, late)) == count


# --- training --------------------------------------------------------------------------------------------------------


def test_a_convergence_curve_is_in_the_order_of_steps_and_without_what_is_no_number():
    (curve,) = figures.convergence_curve({"rank 2": [(3, 1.0), (1, 4.0), (2, math.nan)]})
    assert (curve.name, curve.steps.tolist(), curve.loss.tolist()) == ("rank 2", [1, 3], [4.0, 1.0])


# --- ink -------------------------------------------------------------------------------------------------------------

SHAPES = {
    "one point": (figures.draw_law, figures.rank_curve([LawPoint(1, 16, 5.0)], PowerLaw())),
    "wholly saturated": (figures.draw_law, figures.rank_curve([LawPoint(1, 16, 5.0, 0.1), LawPoint(2, 16, 5.1, 0.0)])),
    "long axis": (figures.draw_law, figures.length_curve(points(range(1, 17), range(1000, 12000, 1000)), PowerLaw())),
    "six laws": (
        figures.draw_agreement,
        [(f"law {k}", figures.agreement_curve(points(), PowerLaw())) for k in range(6)],
    ),
    "one cell": (figures.draw_grid, figures.loss_grid([cell(1, 16)])),
    "bits of one cell": (figures.draw_bits, figures.bits_curve([held(1, 16, 3.0)])),
    "no bits stored": (figures.draw_bits, figures.bits_curve([held(1, 16, 8.0), held(2, 16, 7.5)])),
    "many bits": (figures.draw_bits, figures.bits_curve([held(r, 9000, 0.0, 9000) for r in (1, 2, 4)])),
    "published bits": (figures.draw_bits, figures.bits_curve([], published.points())),
    "all recalled": (figures.draw_grid, figures.loss_grid([cell(1, 16, 0.0), cell(2, 16, 0.0)])),
    "176 cells": (
        figures.draw_grid,
        figures.accuracy_grid([cell(r, 100 * k, acc_token=r / 16) for r in range(1, 17) for k in range(1, 12)]),
    ),
    "10,000 tokens": (figures.draw_strip, figures.strip_curve(many(1, 10_000).items[0])),
    "one token": (figures.draw_strip, figures.strip_curve(recall({"a": [9.0]}).items[0])),
    "a ladder": (figures.draw_ladder, ladder(r1=[3.0, 0.6, 0.1], r8=[0.1, 0.2, 0.1])),
    "a ladder as a map": (figures.draw_ladder_grid, ladder(r1=[3.0, 0.6, 0.1], r8=[0.1, 0.2, 0.1])),
    "one rank": (figures.draw_ladder_grid, ladder(r4=[0.1])),
    "a scatter": (figures.draw_failure_scatter, figures.failure_scatter(many(50, 20))),
    "two trainings": (
        figures.draw_convergence,
        figures.convergence_curve({f"rank {r}": [(t, 5 * math.exp(-r * t / 99)) for t in range(99)] for r in (1, 4)}),
    ),
    "nothing failed": (figures.draw_failures, figures.failure_curve(recall({"a": [0.1]}))),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_figures_of_every_shape_can_be_drawn(shape):
    draw, numbers = SHAPES[shape]
    svg = drawn(draw, numbers)
    assert len(list(svg.iter(f"{SVG}path"))) + len(list(svg.iter(f"{SVG}use"))) >= 3
    assert len(texts(svg)) >= 3


def test_a_plane_is_drawn_with_the_numbers_and_not_their_logarithms():
    svg = drawn(figures.draw_plane, figures.plane_surface(points(), PowerLaw()), projection="3d")
    assert {"rank r", "length l (tokens)", "ΔL (nats per token)", "16", "40", "100"} <= set(texts(svg))


def test_many_laws_all_appear():
    draw, numbers = SHAPES["six laws"]
    assert {f"law {k}" for k in range(6)} <= set(texts(drawn(draw, numbers)))


def test_the_same_numbers_give_the_same_bytes():
    first, second = (
        figures.to_svg(figures.sketch(figures.draw_law, figures.rank_curve(points(), PowerLaw()))) for _ in "ab"
    )
    assert first == second
    assert "<metadata" not in first


def test_identifiers_of_two_figures_in_one_page_do_not_meet():
    sheets = []
    for name in ("left", "right"):
        svg = figures.to_svg(
            figures.sketch(figures.draw_grid, figures.loss_grid([cell(1, 16), cell(2, 16)])), name=name
        )
        root = ElementTree.fromstring(svg)
        identifiers = {element.get("id") for element in root.iter() if element.get("id")}
        used = {value[1:] for element in root.iter() for key, value in element.items() if key.endswith("href")}
        clips = {element.get("clip-path")[5:-1] for element in root.iter() if element.get("clip-path")}
        assert used | clips <= identifiers
        sheets.append(identifiers)
    assert sheets[0].isdisjoint(sheets[1])


def test_a_name_is_shown_as_it_is_and_never_read_as_markup():
    name = '<script>$\\alpha$</script>&"'
    svg = drawn(figures.draw_agreement, [(name, figures.agreement_curve(points(), PowerLaw()))])
    assert name in texts(svg)
    assert not [element for element in svg.iter() if element.tag.endswith("script")]


def test_a_figure_refers_to_nothing_outside_itself():
    svg = drawn(figures.draw_strip, figures.strip_curve(worst(many(5, 300), 1)[0]))
    for element in svg.iter():
        for key, value in element.items():
            assert not value.startswith(("http:", "https:", "//")), (element.tag, key, value)


def test_numbers_load_no_matplotlib_and_ink_loads_no_pyplot_and_no_torch():
    script = """
import sys
from memlaw import figures
from memlaw.records import LawPoint
curve = figures.rank_curve([LawPoint(1, 16, 5.0), LawPoint(2, 16, 6.0)])
assert "matplotlib" not in sys.modules
figures.to_svg(figures.sketch(figures.draw_law, curve))
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
