"""Targets that their tokens do not spell: recalled to the last token, they come back as another text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memlaw.core.facts import EncodedFact
from memlaw.data.spelling import change_of
from memlaw.diagnosis.findings import Finding
from memlaw.model.base import Base

CODE = "other-text"


def text_findings(base: Base, encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """An error for each fact whose target does not survive encoding and decoding, white space included."""
    for fact in encoded:
        change = change_of(base, fact)
        if change is None or base.tokenizer.unk_token_id in fact.target:  # `token_findings` names unknown tokens
            continue
        yield Finding(
            "error",
            fact.id,
            CODE,
            f"Its tokens do not decode to its target: this tokenizer changes {change.what}, first at character "
            f"{change.at:,} of {len(fact.text or ''):,}. However well they are recalled, another text comes back.",
            f"Write the target with the {change.what} that the tokenizer returns, or use a model whose tokenizer keeps "
            "the text as it is.",
        )
