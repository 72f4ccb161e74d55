from __future__ import annotations

import numpy as np
import pytest

from helpers.drawings import SHAPES, drawn, texts
from helpers.sample import PowerLaw, points
from memlaw.core.errors import FitError
from memlaw.core.points import LawPoint
from memlaw.law import fit_law
from memlaw.report import figures


def test_a_rank_curve_has_one_series_a_length_and_the_law_through_it():
    curve = figures.rank_curve(points(), PowerLaw())
    assert (curve.along, curve.fixed) == ("rank", "length")
    assert [series.fixed for series in curve.series] == [16, 64, 256]
    for series in curve.series:
        np.testing.assert_array_equal(series.x, [1, 2, 4, 8])
        np.testing.assert_allclose(series.line, [PowerLaw().predict(rank, series.fixed) for rank in series.line_x])
        inside = ~series.saturated
        at_points = [PowerLaw().predict(rank, series.fixed) for rank in series.x]
        np.testing.assert_allclose(series.delta_loss[inside], np.array(at_points)[inside])
        assert (series.line_x[0], series.line_x[-1]) == pytest.approx((1, 8))


def test_a_length_curve_has_one_series_a_rank():
    curve = figures.length_curve(list(reversed(points())), PowerLaw())
    assert (curve.along, curve.fixed) == ("length", "rank")
    assert [series.fixed for series in curve.series] == [1, 2, 4, 8]
    for series in curve.series:
        np.testing.assert_array_equal(series.x, [16, 64, 256])
        np.testing.assert_allclose(series.line, [PowerLaw().predict(series.fixed, at) for at in series.line_x])


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


def test_a_power_law_is_a_flat_surface_over_logarithms_with_its_points_on_it():
    plane = figures.law_surface(points(), PowerLaw())
    size, length = np.meshgrid(plane.size, plane.length)
    np.testing.assert_allclose(plane.predicted, np.log10(14.0) + 0.4 * size - 0.3 * length)
    free = plane.points[~plane.saturated]
    np.testing.assert_allclose(free[:, 2], np.log10(14.0) + 0.4 * free[:, 0] - 0.3 * free[:, 1])
    assert (plane.size[0], plane.size[-1]) == pytest.approx((0, np.log10(8)))


def test_a_law_surface_leaves_out_values_without_a_logarithm():
    class Negative:
        def predict(self, rank, length):
            return rank - 4.0

    plane = figures.law_surface([*points(), LawPoint(1, 16, -0.1, 10.1)], Negative())
    assert len(plane.points) == len(points())
    assert np.isnan(plane.predicted).any()
    assert np.isfinite(plane.predicted).any()


def test_a_law_surface_is_labelled_with_numbers_not_logarithms():
    svg = drawn(figures.draw_law_surface, figures.law_surface(points(), PowerLaw()), projection="3d")
    assert {"rank r", "length l (tokens)", "ΔL (nats per token)", "16", "40", "100"} <= set(texts(svg))


def test_many_laws_all_appear():
    draw, numbers = SHAPES["six laws"]
    assert {f"law {k}" for k in range(6)} <= set(texts(drawn(draw, numbers)))


def test_a_name_is_shown_as_it_is_and_never_read_as_markup():
    name = '<script>$\\alpha$</script>&"'
    svg = drawn(figures.draw_agreement, [(name, figures.agreement_curve(points(), PowerLaw()))])
    assert name in texts(svg)
    assert not [element for element in svg.iter() if element.tag.endswith("script")]
