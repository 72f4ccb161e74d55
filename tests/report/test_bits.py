from __future__ import annotations

import re

from helpers.pages import Page, remembered
from helpers.sample import cell, diverged
from memlaw.core.recall import LN2
from memlaw.report import ReportContent, render


def test_memory_is_shown_in_bits_beside_published_results():
    cells = [remembered(1, 16, 6 * LN2), remembered(4, 16, 0.0, 16), remembered(1, 64, 9 * LN2), diverged(4, 64)]
    page = render(ReportContent(title="t", cells=cells))
    rows = re.findall(r'<tr><td class="r">(.*?)</td></tr>', page[page.index('id="bits"') : page.index('id="law"')])
    assert [row.split('</td><td class="r">') for row in rows] == [
        ["16", "160", "160 at rank 4", "160 at rank 4", "0.250 at rank 1"],
        ["64", "640", "64.0 at rank 1", "0", "0.250 at rank 1"],
    ]
    page = Page(page)
    assert "2 bits per parameter knowledge, whole models: Allen-Zhu and Li" in page.text
    assert "3.5 to 3.8 bits per parameter raw memorisation, whole models: Morris et al." in page.text
    links = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    assert {"https://arxiv.org/abs/2404.05405", "https://arxiv.org/abs/2505.24832"} <= links
    assert [tag for tag, _ in page.tags].count("figure") == 3


def test_each_kind_of_cells_has_its_own_bits_and_the_published_are_named_once():
    cells = [remembered(1, 16, 1.0), remembered(1, 16, 1.0, method="ot"), cell(1, 16, placement="down_proj")]
    page = render(ReportContent(title="t", cells=cells))
    part = page[page.index('id="bits"') : page.index('id="law"')]
    assert re.findall(r"<h3><bdi>(.*?)</bdi>", part) == [f"data dddddddd, {m}, mlp@3, float32" for m in ("sft", "ot")]
    assert part.count("<figure") == 2
    assert part.count("Allen-Zhu and Li") == 1


def test_an_adapter_that_holds_nothing_shows_zero_bits():
    page = Page(render(ReportContent(title="t", cells=[remembered(1, 16, 8.0, certified_tokens=None)])))
    assert "16 160 0 \N{EN DASH} 0" in page.text


def test_results_of_earlier_versions_show_no_bits(full):
    assert "Memory in bits" not in full
    assert "Memory in bits" not in render(ReportContent(title="t"))
