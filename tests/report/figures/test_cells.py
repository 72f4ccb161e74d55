from __future__ import annotations

import numpy as np

from helpers.drawings import drawn, texts
from helpers.sample import cell, diverged
from memlaw.report import figures


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
