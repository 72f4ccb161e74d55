"""The map of facts by version says of every cell what the manifests say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from helpers.ledger_pages import EMPTY, a_large_content, a_story, version_after
from helpers.ledgers import some_facts
from memlaw.ledger.records import Audit
from memlaw.report.ledger import Column, LedgerContent, collect_ledger
from memlaw.report.ledger_map import map_data, map_rows, weakest
from memlaw.report.ledger_words import by_version


def drawn(content: LedgerContent) -> dict[str, Any]:
    table = content.matrix
    return map_data(content, map_rows(content.columns), table, by_version(table))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> LedgerContent:
    return collect_ledger(a_story(tmp_path_factory.mktemp("story") / "KB").root)


@pytest.fixture(scope="module")
def large() -> LedgerContent:
    return a_large_content(60, 12)


def test_a_fact_keeps_its_row_when_its_target_changes_or_it_goes(story: LedgerContent):
    facts = {fact["id"]: fact for fact in drawn(story)["facts"]}
    shown = {name: (fact["start"], fact["states"], fact["since"]) for name, fact in facts.items()}
    assert shown == {
        "door-a": (0, "cclc", [1, 2]),
        "door-b": (0, "cggg", [1]),
        "price": (0, "crcc", [1]),
        "notice": (1, "ccc", [2]),
        "seal": (2, "cc", [3, 4]),
    }
    assert facts["door-a"]["values"] == [400, 400, -100, 300]
    assert facts["door-b"]["values"] == [400, 1500, 1500, 1500]  # log p, and that of the model alone: -20 and -21.5
    assert facts["notice"]["fall"] == [4, 400, 50]
    assert facts["door-b"]["fall"] is None
    assert all("prompt" not in fact and "targets" not in fact for fact in facts.values())


def test_every_cell_is_that_of_its_manifest(large: LedgerContent):
    cells = {
        (fact["id"], column.version.number): (state, value)
        for fact in drawn(large)["facts"]
        for column, state, value in zip(large.columns[fact["start"] :], fact["states"], fact["values"], strict=True)
    }
    seen = set()
    for column in large.columns:
        risky = {fact.id for fact in column.version.at_risk()}
        for fact in column.version.held:
            state, value = cells.pop((fact.id, column.version.number))
            assert value == round(1000 * fact.margin)
            assert state == ("l" if fact.verdict == "lost" else "r" if fact.id in risky else "c")
            seen.add(state)
    assert seen == {"c", "r", "l"}
    assert {state for state, _ in cells.values()} == {"g"}


def test_versions_list_what_they_changed_and_the_margins_they_took(story: LedgerContent):
    data = drawn(story)
    names = [fact["id"] for fact in data["facts"]]
    lists = [
        {label: [names[place] for place in places] for label, places in version["lists"]}
        for version in data["versions"]
    ]
    assert lists == [
        {"added": ["door-a", "door-b", "price"]},
        {"added": ["notice"], "changed": ["door-a"], "retracted": ["door-b"]},
        {"added": ["seal"], "lost": ["door-a"]},
        {"changed": ["seal"]},
    ]
    costs = [[(names[place], *rest) for place, *rest in version["costs"]] for version in data["versions"]]
    assert costs == [[], [("price", 400, 3, 0)], [("door-a", 400, -100, 1)], [("notice", 400, 50, 0)]]


def test_a_retracted_target_that_an_audit_saw_again_comes_back():
    one = version_after(EMPTY, some_facts("a", "b"), [], lambda *_: 0.4)
    two = version_after(one, (), ["b"], lambda *_: 0.4)
    audit = Audit(2, two.held, two.retracted, "", "now", returned=("b",))
    rows = map_rows([Column(version=one), Column(version=two, audit=audit)])
    assert {row.id: "".join(row.states) for row in rows.values()} == {"a": "cc", "b": "cb"}
    assert [row.id for row in weakest(rows, 5)] == ["b", "a"]


def test_the_weakest_facts_come_first(large: LedgerContent):
    rows = map_rows(large.columns)
    order = weakest(rows, len(rows))
    assert {row.id for row in order} == {fact.id for fact in large.columns[-1].version.held}
    keys = [("blrc".index(row.states[-1]), row.values[-1]) for row in order]
    assert keys == sorted(keys)
    assert weakest(rows, 3) == order[:3]


def test_texts_are_there_only_if_the_content_has_them(tmp_path: Path):
    store = a_story(tmp_path / "KB")
    facts = {fact["id"]: fact for fact in drawn(collect_ledger(store.root, show_text=True))["facts"]}
    assert facts["door-a"]["prompt"] == "What is door-a? "
    assert facts["door-a"]["targets"] == ["hunter2-and-more door-a", "hunter2-and-more door-a!"]
    content = dataclasses.replace(collect_ledger(store.root), texts={})
    assert drawn(content)["facts"][0]["targets"] == [None, None]
