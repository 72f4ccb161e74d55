"""What `memlaw check` has to say: findings, their JSON, and the schema of it (`docs/schema/check.json`). No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, with_config

from memlaw.core.canonical import to_dict

Version = Literal["memlaw.check/1"]

SCHEMA: Version = "memlaw.check/1"
"""Of the document; the number rises when a key is renamed, removed, or changes its meaning, not for new codes."""

Severity = Literal["error", "warning", "info"]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the gravest."""


@dataclass(frozen=True)
class Finding:
    """One thing that keeps a fact, or the whole set, from being recalled as its owner means it. Never target text."""

    severity: Severity
    """error: these facts cannot be stored or recalled as they stand; warning: they can, and may still fail in use;
    info: worth knowing."""
    record: str | None
    """Id of the fact; null where it is about the whole set, the model or the adapter."""
    code: str
    """Which rule found it, such as unreachable-token; stable."""
    message: str
    """What was found and why it matters."""
    fix: str
    """What to do about it."""
    positions: tuple[int, ...] = ()
    """Of the target tokens concerned, from 0, where there are such."""


@dataclass(frozen=True)
class CheckReport:
    """All findings on a memory set, the gravest first; an empty list is a clean bill."""

    records: int
    """Facts looked at."""
    tokens: int
    """Target tokens of the facts that have tokens at all, end of sequence among them where it is stored."""
    findings: tuple[Finding, ...]
    schema: Version = SCHEMA
    """Version of this document."""

    @property
    def counts(self) -> dict[Severity, int]:
        """Findings of each severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    def to_dict(self) -> dict[str, Any]:
        """What `memlaw check --json` prints."""
        return to_dict(self)


for _kind in (CheckReport, Finding):
    with_config(use_attribute_docstrings=True)(_kind)  # the sentence under a field is its description in the schema


def check_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of `memlaw check --json`; docs/schema/check.json holds it."""
    schema = TypeAdapter(CheckReport).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
