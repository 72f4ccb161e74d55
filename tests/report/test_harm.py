from __future__ import annotations

import dataclasses
import re

from helpers.pages import COSTS, Page
from memlaw.report import ReportContent, render


def table(page: str) -> list[list[str]]:
    part = page[page.index('id="harm"') : page.index('id="made"')]
    rows = re.findall(r"<tr>(<td.*?)</tr>", part)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows]


def test_adapters_are_listed_with_what_they_recall_and_what_they_cost():
    page = render(ReportContent(title="t", costs=COSTS[:2]))
    assert table(page) == [
        ["1", "plain", "rank 8 at down_proj@4", "12 of 12", "+2.600", "0.0300", "98.0 %", "2 of 8"],
        ["2", "kind", "rank 8 at down_proj@4", "11 of 12", "+0.020", "0.0300", "98.0 %", "2 of 8"],
    ]
    assert [tag for tag, _ in Page(page).tags].count("figure") == 1


def test_a_single_adapter_has_a_table_alone():
    page = Page(render(ReportContent(title="t", costs=COSTS[:1])))
    assert "figure" not in {tag for tag, _ in page.tags}
    assert "+2.600" in page.text


def test_what_is_not_known_is_a_dash():
    effects = dataclasses.replace(COSTS[0].effects, near_miss=None, near_misses=0, near_miss_base=None)
    unknown = dataclasses.replace(COSTS[0], recalled=None, records=None, effects=effects)
    page = render(ReportContent(title="t", costs=[unknown, COSTS[1]]))
    assert (table(page)[0][3], table(page)[0][-1]) == ("\N{EN DASH}", "\N{EN DASH}")
    assert "figure" not in {tag for tag, _ in Page(page).tags}
