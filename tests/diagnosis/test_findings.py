"""Findings as JSON under a fixed schema, and as lines for a person."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from helpers.paths import ROOT
from memlaw.cli.check import check_lines
from memlaw.diagnosis.findings import CheckReport, Finding, check_schema

TEXT = st.text(max_size=20)

FINDINGS = st.builds(
    Finding,
    severity=st.sampled_from(("error", "warning", "info")),
    record=st.none() | TEXT,
    code=TEXT,
    message=TEXT,
    fix=TEXT,
    positions=st.lists(st.integers(0, 99)).map(tuple),
)


def about(record: str | None, *, code: str = "border-merge", fix: str = "Move the space.") -> Finding:
    return Finding("warning", record, code, f"Seen on {record}.", fix)


def test_the_schema_in_the_documentation_is_that_of_the_code():
    path = ROOT / "docs" / "schema" / "check.json"
    assert path.read_text(encoding="utf-8") == json.dumps(check_schema(), indent=2) + "\n", (
        "findings.check_schema() changed: write its JSON there, and raise SCHEMA if a key went or changed"
    )


def test_every_key_of_the_schema_is_described():
    for definition in (check_schema(), *check_schema()["$defs"].values()):
        for name, key in definition["properties"].items():
            assert name == "findings" or "description" in key, name


@given(findings=st.lists(FINDINGS), records=st.integers(0, 9), more=st.booleans())
def test_the_json_is_read_back_as_it_was_also_by_one_who_knows_fewer_keys(findings, records, more):
    report = CheckReport(records, 3, tuple(findings))
    document = json.loads(json.dumps(report.to_dict())) | ({"of a later version": 1} if more else {})
    assert document["schema"] == "memlaw.check/1"
    assert TypeAdapter(CheckReport).validate_json(json.dumps(document), strict=True) == report


def test_findings_of_one_kind_stand_together_and_name_the_first_few_facts():
    merges = [about(f"fact-{number}") for number in range(7)]
    report = CheckReport(9, 90, (*merges, about(None, code="no-eos", fix="Store it."), about("fact-0", fix="Other.")))
    assert list(check_lines(report)) == [
        "Facts: 9, target tokens: 90; 0 error, 9 warning, 0 info.",
        "",
        "warning: border-merge: fact-0, fact-1, fact-2, fact-3, fact-4, ... (7 facts)",
        "  Seen on fact-0.",
        "  Fix: Move the space.",
        "",
        "warning: no-eos",
        "  Seen on None.",
        "  Fix: Store it.",
        "",
        "warning: border-merge: fact-0",
        "  Seen on fact-0.",
        "  Fix: Other.",
    ]


def test_ids_from_a_file_cannot_command_the_terminal():
    assert "warning: border-merge: '\\x1b[2J'" in list(check_lines(CheckReport(1, 1, (about("\x1b[2J"),))))
