"""A recall report as JSON and back: versioned, described by a JSON schema, refused where it contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError, with_config

from memlaw.core.canonical import canonical_json, to_dict
from memlaw.core.errors import DataError
from memlaw.core.recall import RecallReport, RecordRecall, TokenRecall
from memlaw.diagnosis.patterns import Correlation, LossBand, Patterns, patterns
from memlaw.diagnosis.verdicts import check, judge, total

Version = Literal["memlaw.recall/1"]

SCHEMA: Version = "memlaw.recall/1"
"""Of the document; the number rises when a key is renamed, removed, or changes its meaning."""

Texts = Mapping[str, Sequence[str]]
"""Record id -> its target tokens as text, one string a token."""


@dataclass(frozen=True)
class RecallDocument(RecallReport):
    """What `memlaw recall --json` prints: the report, and what its failures have in common."""

    schema: Version
    """Version of this document."""
    patterns: Patterns
    """Statistics over the records."""
    advice: tuple[str, ...]
    """What to do next, a sentence each."""
    texts: dict[str, tuple[str, ...]] | None
    """Record id -> its target tokens as text; null unless asked for with --show-text, since targets are sensitive."""


for _kind in (RecallDocument, RecallReport, RecordRecall, TokenRecall, Patterns, Correlation, LossBand):
    with_config(use_attribute_docstrings=True)(_kind)  # the sentence under a field is its description in the schema

_REPORT = TypeAdapter(RecallReport)


def report_to_dict(
    report: RecallReport, *, per_token: bool = True, advice: Sequence[str] = (), texts: Texts | None = None
) -> dict[str, Any]:
    """The report as plain JSON values, under the keys of the `recall` contract, with the patterns of its failures.

    `per_token=False` leaves out each item's `tokens` (nll, top1, ...), without which it cannot be read back.
    """
    document = to_dict(report) | {
        "schema": SCHEMA,
        "patterns": to_dict(patterns(report)),
        "advice": list(advice),
        "texts": None if texts is None else {name: list(pieces) for name, pieces in texts.items()},
    }
    if not per_token:
        for item in document["items"]:
            del item["tokens"]
    return document


def report_from_dict(document: dict[str, Any]) -> RecallReport:
    """Inverse of `report_to_dict`. Keys it does not know are left alone, so a file may say more than the report.

    Verdicts are worked out again from the tokens and must be the stored ones: a certificate that was edited, or that
    another version of the rules gave, is refused rather than repeated.

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
            f"This is not a recall report with per-token numbers: at {where}: {first['msg']} ({error.error_count()} "
            f"such faults). Run `memlaw recall` again and keep its file as written."
        ) from None
    except (TypeError, ValueError) as error:
        raise DataError(f"This recall report is not plain JSON ({error}). Run `memlaw recall` again.") from None
    for item in stored.items:
        check(item.id, item.length, item.tokens)
    return _judged_again(stored)


def report_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of `report_to_dict`'s document; docs/schema/recall.json holds it."""
    schema = TypeAdapter(RecallDocument).json_schema(mode="serialization")
    schema["properties"] |= _REPORT.json_schema(mode="serialization")["properties"]  # with the sentences of the parent
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _judged_again(stored: RecallReport) -> RecallReport:
    """The report that the stored tokens give, which must be the stored one."""
    items = tuple(judge(item.id, item.tokens, stored.tolerance) for item in stored.items)
    for given, found in zip(stored.items, items, strict=True):
        if given != found:
            names = [name for name, value in vars(found).items() if value != getattr(given, name)]
            raise DataError(
                f"Record {given.id!r}: the stored verdict (margin {given.margin}, exact {given.exact}, certified "
                f"{given.certified}) is not what its tokens give (margin {found.margin}, exact {found.exact}, "
                f"certified {found.certified}; {', '.join(names)}), so the file was changed after it was written. Run "
                f"`memlaw recall` again."
            )
    report = total(items, tolerance=stored.tolerance, dtype=stored.dtype, rounding=stored.rounding)
    if report != stored:
        names = [name for name, value in vars(report).items() if value != getattr(stored, name)]
        raise DataError(
            f"The totals {', '.join(names)} of this recall report are not those of its records, so the file was "
            f"changed after it was written. Run `memlaw recall` again."
        )
    return report
