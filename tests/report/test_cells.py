from __future__ import annotations

from helpers.pages import Page
from helpers.sample import cell, diverged
from memlaw.report import ReportContent, render


def test_each_kind_of_cells_has_its_own_table_and_maps():
    kinds = [cell(1, 16), cell(1, 16, method="ot"), cell(1, 16, data="e" * 64), cell(1, 16, placement="down_proj")]
    page = Page(render(ReportContent(title="t", cells=kinds, sources={"d" * 64: "random tokens"})))
    assert page.text.count("All 1 cells") == 4
    for name in ("random tokens, sft, mlp@3", "random tokens, ot, mlp@3", "data eeeeeeee, sft", "sft, down_proj"):
        assert name in page.text


def test_seeds_share_a_map_and_have_a_column():
    page = render(ReportContent(title="t", cells=[cell(1, 16, seed=1), cell(1, 16, seed=2)]))
    assert page.count("<figure") == 2
    assert '<th class="r">seed</th>' in page
    assert "seed</th>" not in render(ReportContent(title="t", cells=[cell(1, 16)]))


def test_cells_that_did_not_finish_say_why():
    page = Page(render(ReportContent(title="t", cells=[diverged(8, 16, "The loss became NaN at step 43.")])))
    assert "Rank 8, length 16: The loss became NaN at step 43." in page.text
    assert "figure" not in {tag for tag, _ in page.tags}
