"""A ledger in sentences and tables: those of `memlaw ledger status`, and the measures of audits by version."""

from __future__ import annotations

import dataclasses

import pytest

from helpers.ledger_pages import EMPTY, a_large_content, version_after
from helpers.ledgers import some_facts
from memlaw.ledger.audit import forgetting, matrix
from memlaw.ledger.records import Audit
from memlaw.report import ledger_words as words
from memlaw.report.ledger import Column, LedgerContent


@pytest.fixture(scope="module")
def large() -> LedgerContent:
    return a_large_content(60, 12)


def test_the_answers_are_those_of_status(large: LedgerContent):
    now = dataclasses.replace(large.now, facts=50, certified=40, at_risk=9, lost=1, retracted=1)
    told = dict(words.answers(dataclasses.replace(large, now=now)))
    assert told["Does every fact come back?"] == (
        "Version 12 holds 50 facts, 40 certified, 1 lost. 9 facts at risk, by a margin that rounding may undo. "
        "1 retracted target must not come back."
    )
    assert told["How much more fits?"] == (
        f"About {now.room.tokens:,.0f} target tokens like these (95%: {now.room.low:,.0f} to {now.room.high:,.0f})."
    )
    assert told["What does it cost the model?"].startswith("Side effects: +0.024 nats a token")
    bare = dataclasses.replace(large, now=dataclasses.replace(now, room=None, side_effects=None))
    told = dict(words.answers(bare))
    assert told["How much more fits?"].startswith("Unknown")
    assert told["What does it cost the model?"] == "Not measured."


def test_measures_by_version_are_those_of_an_audit_up_to_it(large: LedgerContent):
    found = words.by_version(large.matrix)
    for last in range(1, len(large.columns) + 1):
        assert found[last - 1] == forgetting(matrix([column.version for column in large.columns[:last]]))


def test_the_table_has_the_latest_version_first(large: LedgerContent):
    table = words.version_table(large, words.by_version(large.matrix))
    assert [row["number"] for row in table] == list(range(12, 0, -1))
    assert table[-1]["changed"] == "5 added"
    assert table[-1]["values"][3:5] == ["\N{EN DASH}", "\N{EN DASH}"]  # nothing to transfer to yet


def test_losses_come_before_falls(large: LedgerContent):
    assert words.cost_table(large.matrix)["lost"] > 0
    one = version_after(EMPTY, some_facts("a"), [], lambda *_: 0.4)
    two = version_after(one, some_facts("b"), [], lambda *_: 0.3)
    table = words.cost_table(matrix([one, two]))
    assert (table["lost"], [(row["id"], row["by"], row["margins"]) for row in table["rows"]]) == (
        0, [("a", 2, ["0.400", "0.300"])],
    )  # fmt: skip


def test_audits_are_told_of_the_version_and_of_the_map(large: LedgerContent):
    assert words.measured_when(large) == "Each column shows what was measured when the version was made."
    last = large.columns[-1].version
    held = tuple(dataclasses.replace(fact, verdict="lost") for fact in last.held)
    audit = Audit(12, held, last.retracted, "", "2026-12-01T08:00:00+00:00", returned=("x",))
    served = dataclasses.replace(audit, adapter="served", returned=())
    column = Column(version=last, audit=audit, served=served)
    content = dataclasses.replace(large, columns=(*large.columns[:-1], column))
    assert "of version 12, what the last audit" in words.measured_when(content)
    every = dataclasses.replace(large, columns=(column,))
    assert words.measured_when(every) == "Each column shows what the last audit of the version measured."
    told = dict(words.answers(content))["Does every fact come back?"]
    count = f"{len(held)} facts, 0 certified, {len(held)} lost"
    assert f"Measured again on 2026-12-01: {count}; 1 retracted target came back." in told
    assert f"Measured again as served by served on 2026-12-01: {count}." in told
    shown = words.version_words(column, words.by_version(large.matrix)[-1])
    assert ("come back although they must not", "x") in shown


def test_a_time_that_is_none_stays_as_it_is():
    version = dataclasses.replace(version_after(EMPTY, some_facts("a"), [], lambda *_: 0.4), created="some day")
    assert ("made", "some day, from version 0") in words.version_words(
        Column(version=version), forgetting(matrix([version]))
    )
