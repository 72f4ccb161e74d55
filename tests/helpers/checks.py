from __future__ import annotations

import json
from typing import Any

from helpers import tiny
from memlaw.core.facts import Fact, MemorySet
from memlaw.diagnosis.findings import CheckReport, Finding
from memlaw.model.base import Base, wrap

SECRET = "hunter"

GOOD = [("Code of door A:", "4917#"), ("Code of door B:", "0286#"), ("Password of the archive:", "hunter2")]


def facts(*pairs: tuple[str, str], eos: bool = True) -> MemorySet:
    return MemorySet(tuple(Fact(q, a, str(n)) for n, (q, a) in enumerate(pairs, start=1)), eos, "test")


def other_base(tokenizer: Any) -> Base:
    return wrap(tiny.model(vocab_size=340), tokenizer)


def findings_of(report: CheckReport, code: str) -> list[Finding]:
    """The findings of one rule; none of any rule repeats a target."""
    assert SECRET not in json.dumps(report.to_dict())
    return [finding for finding in report.findings if finding.code == code]


def the_one(report: CheckReport, code: str) -> Finding:
    (finding,) = findings_of(report, code)
    return finding


def codes(report: CheckReport) -> set[str]:
    assert SECRET not in json.dumps(report.to_dict())
    return {finding.code for finding in report.findings}
