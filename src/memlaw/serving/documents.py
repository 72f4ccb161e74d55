"""What `memlaw verify --json` prints, and its schema (`docs/schema/verify.json`): a recall document, and more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, with_config

from memlaw.core.canonical import to_dict
from memlaw.diagnosis.documents import RecallDocument, Texts, report_schema, report_to_dict
from memlaw.serving.preflight import Difference
from memlaw.serving.verify import Part, Stability, Verification, Where


@dataclass(frozen=True)
class VerifyDocument(RecallDocument):
    """A recall document about a server: whatever reads those of `memlaw recall` reads this one."""

    where: Where
    """The server that was asked."""
    differences: tuple[Difference, ...]
    """What the server does otherwise than `memlaw recall`, found before the facts were asked for."""
    unknown: dict[str, tuple[int, ...]]
    """Record id -> positions whose probability the server did not say. Their nll is ln 2 here, p = 1/2: they count as
    neither ordered nor certified, and their share of `mean_loss` and `log_p` is a guess."""
    stability: Stability | None
    """How much answers differ between repeats; null if every fact was asked once."""


for _kind in (VerifyDocument, Where, Part, Difference, Stability):
    with_config(use_attribute_docstrings=True)(_kind)  # the string under a field becomes its description in the schema


def verification_to_dict(verified: Verification, *, texts: Texts | None = None) -> dict[str, Any]:
    """The verification as plain JSON values; `memlaw.diagnosis.documents.report_from_dict` reads its report back."""
    more = to_dict(verified)
    del more["report"]
    return report_to_dict(verified.report, texts=texts) | more


def verify_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of `verification_to_dict`'s document; docs/schema/verify.json holds it."""
    schema = TypeAdapter(VerifyDocument).json_schema(mode="serialization")
    schema["properties"] |= report_schema()["properties"]  # with the sentences of the parent
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
