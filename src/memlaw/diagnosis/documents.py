"""A recall report as JSON and back: versioned, with a JSON schema, and refused if it contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError, with_config

from memlaw.core.canonical import canonical_json, to_dict
from memlaw.core.errors import DataError, first_line
from memlaw.core.recall import RecallReport, RecordRecall, TokenRecall
from memlaw.core.side_effects import SideEffects
from memlaw.diagnosis.patterns import Correlation, LossBand, Patterns, patterns
from memlaw.diagnosis.verdicts import check, judge, total

Version = Literal["memlaw.recall/1"]

SCHEMA: Version = "memlaw.recall/1"
"""Version of the document. It increases when a key is renamed, removed or changes its meaning."""

Texts = Mapping[str, Sequence[str]]
"""Record id -> its target tokens as text, one string per token."""


@dataclass(frozen=True)
class RecallDocument(RecallReport):
    """What `memlaw recall --json` prints: the report, what its failures have in common, and advice."""

    schema: Version
    """Version of this document."""
    patterns: Patterns
    """Statistics over the records."""
    advice: tuple[str, ...]
    """What to do next, most promising first."""
    same_facts: bool | None
    """Whether the adapter was trained on exactly these facts; null without an adapter, or where it was not recorded."""
    side_effects: SideEffects | None
    """What the adapter changes elsewhere; null without --side-effects."""
    texts: dict[str, tuple[str, ...]] | None
    """Record id -> its target tokens as text; null without --show-text, since targets are sensitive."""


for _kind in (RecallDocument, RecallReport, RecordRecall, TokenRecall, SideEffects, Patterns, Correlation, LossBand):
    with_config(use_attribute_docstrings=True)(_kind)  # the string under a field becomes its description in the schema

_REPORT = TypeAdapter(RecallReport)
_EFFECTS = TypeAdapter(SideEffects | None)


def report_to_dict(
    report: RecallReport,
    *,
    per_token: bool = True,
    advice: Sequence[str] = (),
    texts: Texts | None = None,
    same_facts: bool | None = None,
    side_effects: SideEffects | None = None,
) -> dict[str, Any]:
    """The report as plain JSON values, under the keys of the `recall` contract, with the patterns of its failures.

    `per_token=False` omits each item's `tokens` (nll, top1, ...); the document can then not be read back.
    """
    document = to_dict(report) | {
        "schema": SCHEMA,
        "patterns": to_dict(patterns(report)),
        "advice": list(advice),
        "same_facts": same_facts,
        "side_effects": None if side_effects is None else to_dict(side_effects),
        "texts": None if texts is None else {name: list(pieces) for name, pieces in texts.items()},
    }
    if not per_token:
        for item in document["items"]:
            del item["tokens"]
    return document


def report_from_dict(document: dict[str, Any]) -> RecallReport:
    """Inverse of `report_to_dict`. Unknown keys are ignored.

    Verdicts are recomputed from the tokens and must equal the stored ones, so an edited certificate, or one from a
    version with other rules, is refused.

    Raises:
        DataError: a key is missing or has the wrong type, or the file contradicts itself.
    """
    if isinstance(document, dict) and (version := document.get("schema", SCHEMA)) != SCHEMA:
        raise DataError(
            f"This recall report has the schema {version!r}, and this memlaw reads {SCHEMA!r}. Run `memlaw recall` "
            f"again, or use the memlaw that wrote it."
        )
    try:
        stored = _REPORT.validate_json(canonical_json(document), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise DataError(
            f"This is not a recall report with per-token numbers: at {where}: {first['msg']} (errors: "
            f"{error.error_count()}). Run `memlaw recall` again and do not edit its file."
        ) from None
    except (TypeError, ValueError) as error:
        raise DataError(f"This recall report is not plain JSON ({error}). Run `memlaw recall` again.") from None
    for item in stored.items:
        check(item.id, item.length, item.tokens)
    return _judged_again(stored)


def side_effects_from_dict(document: dict[str, Any]) -> SideEffects | None:
    """The side effects in a document of `report_to_dict`, or in a record of an adapter; None if not measured.

    Raises DataError for numbers that are missing or of the wrong type.
    """
    try:
        return _EFFECTS.validate_json(canonical_json(document.get("side_effects")), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise DataError(
            f"The side effects in this file cannot be read ({first_line(error)}). Measure them again with `memlaw "
            "recall --side-effects`."
        ) from None


def report_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of `report_to_dict`'s document; docs/schema/recall.json holds it."""
    schema = TypeAdapter(RecallDocument).json_schema(mode="serialization")
    schema["properties"] |= _REPORT.json_schema(mode="serialization")["properties"]  # with the sentences of the parent
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _judged_again(stored: RecallReport) -> RecallReport:
    """The report recomputed from the stored tokens, which must equal the stored one."""
    items = tuple(judge(item.id, item.tokens, stored.tolerance) for item in stored.items)
    for given, judged in zip(stored.items, items, strict=True):
        if given != judged:
            names = [name for name, value in vars(judged).items() if value != getattr(given, name)]
            raise DataError(
                f"Record {given.id!r}: the stored verdict (margin {given.margin}, exact {given.exact}, certified "
                f"{given.certified}) does not follow from its tokens (margin {judged.margin}, exact {judged.exact}, "
                f"certified {judged.certified}; {', '.join(names)}), so the file was edited. Run "
                f"`memlaw recall` again."
            )
    report = total(items, tolerance=stored.tolerance, dtype=stored.dtype, rounding=stored.rounding)
    if report != stored:
        names = [name for name, value in vars(report).items() if value != getattr(stored, name)]
        raise DataError(
            f"The totals {', '.join(names)} of this recall report do not match its records, so the file was "
            f"edited. Run `memlaw recall` again."
        )
    return report
