from __future__ import annotations

import dataclasses
import json
import re

import pytest

from helpers.pages import Page, laws
from helpers.sample import points
from memlaw.core.points import LawPoint
from memlaw.law import fit_law
from memlaw.report import FittedLaw, ReportContent, render


def test_both_forms_are_shown_side_by_side_with_their_uncertainty(full):
    page = Page(full)
    for words in ("bounded form", "paper form", "Status: ok.", "mean absolute error"):
        assert words in page.text
    summary = laws()[1].summary
    alpha = summary["parameters"]["alpha"]
    assert (
        f"{alpha['value']:#.3g} ± {alpha['stderr']:#.2g}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")
        in page.text
    )


def test_a_fit_without_parameters_still_shows_its_status():
    few = points(ranks=(1, 2), lengths=(16,))
    fit = fit_law(few)
    assert fit.status != "ok"
    page = Page(render(ReportContent(title="t", fits=[FittedLaw(summary=fit.summary(), points=few, predictor=fit)])))
    assert fit.status in page.text


def test_cells_that_gained_nothing_are_counted_where_they_cannot_be_drawn():
    measured = [*points(), LawPoint(1, 512, -0.2, 10.2)]
    page = Page(render(ReportContent(title="t", fits=[dataclasses.replace(laws()[0], points=measured)])))
    assert "Log axes leave out 1 cell without gain." in page.text


def test_the_slider_shows_predictions_within_the_measured_range(full):
    data = json.loads(re.search(r'id="law-data">(.*?)</script>', full, flags=re.DOTALL)[1])
    law = laws()[0].predictor
    assert (data["sizes"][0], data["sizes"][-1], data["lengths"][0], data["lengths"][-1]) == (1, 8, 16, 256)
    for length, row, initial in zip(data["lengths"], data["gain"], data["initial"], strict=True):
        assert row == pytest.approx([law.predict(size, length) for size in data["sizes"]], abs=1e-4)
        assert initial == pytest.approx(10.0)
