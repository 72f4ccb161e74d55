"""`memlaw check` on small real models and tokenizers: every rule finds what it is for, and is silent elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import memlaw
from helpers.checks import GOOD, facts
from memlaw.api import check, check_on
from memlaw.core.errors import DataError
from memlaw.diagnosis.findings import CheckReport
from memlaw.model.base import Base


def test_good_facts_have_no_findings(base: Base) -> None:
    report = check_on(base, facts(*GOOD))
    assert report == CheckReport(records=3, tokens=3 + sum(len(target) for _, target in GOOD), findings=())


def test_from_python_and_from_a_file_it_is_the_same(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in [*GOOD, ("code of door A:", "x")])
    )
    by_file = memlaw.check(base.model, base.tokenizer, path)
    assert by_file == check_on(base, facts(*GOOD, ("code of door A:", "x")))
    assert [finding.code for finding in by_file.findings] == ["near-duplicate"]


def test_the_gravest_come_first_and_one_fault_hides_no_other(base: Base) -> None:
    report = check_on(base, facts(("a", "x" * 200), ("A ", "\u20ac"), ("c", "<eos>z"), eos=True))
    assert [(f.severity, f.code, f.record) for f in report.findings] == [
        ("error", "too-long", "1"),
        ("error", "unknown-token", "2"),
        ("error", "eos-inside", "3"),
        ("warning", "near-duplicate", "2"),
    ]
    assert report.counts == {"error": 3, "warning": 1, "info": 0}


def test_facts_that_cannot_be_read_stay_errors(base: Base, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The file .* does not exist"):
        check(base.model, base.tokenizer, tmp_path / "none.jsonl")
