"""Figures are judged by their numbers; a drawing must only exist, repeat byte for byte, and be one harmless SVG."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from helpers.drawings import SHAPES, SVG, drawn, texts
from helpers.sample import PowerLaw, cell, many, points
from memlaw.diagnosis.verdicts import worst
from memlaw.report import figures


@pytest.mark.parametrize("shape", SHAPES)
def test_figures_of_every_shape_can_be_drawn(shape):
    draw, numbers = SHAPES[shape]
    svg = drawn(draw, numbers)
    assert len(list(svg.iter(f"{SVG}path"))) + len(list(svg.iter(f"{SVG}use"))) >= 3
    assert len(texts(svg)) >= 3


def test_the_same_numbers_give_the_same_bytes():
    first, second = (
        figures.to_svg(figures.sketch(figures.draw_law, figures.rank_curve(points(), PowerLaw()))) for _ in "ab"
    )
    assert first == second
    assert "<metadata" not in first


def test_identifiers_of_two_figures_in_one_page_do_not_clash():
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


def test_a_figure_refers_to_nothing_outside_itself():
    svg = drawn(figures.draw_strip, figures.strip_curve(worst(many(5, 300), 1)[0]))
    for element in svg.iter():
        for key, value in element.items():
            assert not value.startswith(("http:", "https:", "//")), (element.tag, key, value)


def test_numbers_load_no_matplotlib_and_ink_loads_no_pyplot_and_no_torch():
    script = """
import sys
from memlaw.report import figures
from memlaw.core.points import LawPoint
curve = figures.rank_curve([LawPoint(1, 16, 5.0), LawPoint(2, 16, 6.0)])
assert "matplotlib" not in sys.modules
figures.to_svg(figures.sketch(figures.draw_law, curve))
assert "matplotlib.pyplot" not in sys.modules
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
