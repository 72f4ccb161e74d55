"""What `memlaw check` reports: findings, their JSON and its schema (`docs/schema/check.json`). No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, with_config

from memlaw.core.canonical import to_dict

Version = Literal["memlaw.check/1"]

SCHEMA: Version = "memlaw.check/1"
"""Version of the document. It increases when a key is renamed, removed or changes its meaning, not for new codes."""

Severity = Literal["error", "warning", "info"]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""Most severe first."""


@dataclass(frozen=True)
class Finding:
    """Something that keeps a fact, or the whole set, from being recalled as intended. Never contains target text."""

    severity: Severity
    """error: these facts cannot be stored or recalled as they are; warning: they can, but may fail in use; info: worth
    knowing."""
    record: str | None
    """Id of the fact; null if the finding is about the whole set, the model or the adapter."""
    code: str
    """The rule, such as unreachable-token; stable across versions."""
    message: str
    """What is wrong and why it matters."""
    fix: str
    """How to fix it."""
    positions: tuple[int, ...] = ()
    """Positions of the target tokens concerned, from 0; empty if the finding is not about single tokens."""


@dataclass(frozen=True)
class CheckReport:
    """All findings on a memory set, most severe first; an empty list means that nothing was found."""

    records: int
    """Facts checked."""
    tokens: int
    """Target tokens of the facts that can be encoded, including end of sequence where it is stored."""
    findings: tuple[Finding, ...]
    schema: Version = SCHEMA
    """Version of this document."""

    @property
    def counts(self) -> dict[Severity, int]:
        """Number of findings of each severity."""
        numbers = Counter(finding.severity for finding in self.findings)
        return {severity: numbers[severity] for severity in SEVERITIES}

    def to_dict(self) -> dict[str, Any]:
        """What `memlaw check --json` prints."""
        return to_dict(self)


for _kind in (CheckReport, Finding):
    with_config(use_attribute_docstrings=True)(_kind)  # the string under a field becomes its description in the schema


def check_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of `memlaw check --json`; docs/schema/check.json holds it."""
    schema = TypeAdapter(CheckReport).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
