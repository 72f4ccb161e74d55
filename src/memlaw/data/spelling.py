"""Whether targets survive the way into tokens and back: a tokenizer may change case, white space or Unicode form.

What comes back verbatim is text. With every token of a target recalled, it is the text that these tokens decode to, and
only if that is the target, character by character, has the target been recalled.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from memlaw.core.errors import ModelError
from memlaw.core.facts import EncodedFact

_NAMED = 3  # facts in a warning


class Speaker(Protocol):
    """What spells answers: a base, or a tokenizer and the ids at which generation stops."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def stops(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class Change:
    """How the text that a target's tokens decode to differs from the target."""

    at: int
    """The first character of the target, from 0, that is another one or missing; its length if something is added."""
    what: str
    """letter case, white space, Unicode form, or characters: all that differs."""


def change_of(base: Speaker, fact: EncodedFact) -> Change | None:
    """What encoding and decoding change in the target of `fact`; None if nothing, or if the target is made of tokens.

    The tokens are decoded after those of the prompt, where users read them: many tokenizers drop the space before the
    first token of a text. The end of sequence that is stored is no part of the text. Raises ModelError for a tokenizer
    that cannot decode its own ids.
    """
    if fact.text is None:
        return None
    asked = decode(base.tokenizer, fact.id, fact.prompt)
    answer = decode(base.tokenizer, fact.id, fact.ids)
    if answer != asked + fact.text and _is_end(base, fact):  # a target may also spell an end itself
        answer = decode(base.tokenizer, fact.id, fact.ids[:-1])
    if answer == asked + fact.text:
        return None
    # Where the answer changes what the prompt decodes to, nothing says where it begins.
    returned = answer[len(asked) :] if answer.startswith(asked) else ""
    return Change(_first_difference(fact.text, returned), _kind(fact.text, returned))


def survives(base: Speaker, fact: EncodedFact) -> bool | None:
    """Whether the target's tokens decode to exactly its text; None for a target made of tokens. Raises ModelError."""
    return None if fact.text is None else change_of(base, fact) is None


def changed_facts(base: Speaker, facts: Iterable[EncodedFact]) -> tuple[str, ...]:
    """Ids of the facts whose target does not survive. Raises ModelError."""
    return tuple(fact.id for fact in facts if survives(base, fact) is False)


def changed_warning(changed: Sequence[str], total: int) -> str:
    """The warning about the facts `changed`, of `total`."""
    named = ", ".join(map(repr, changed[:_NAMED])) + (", ..." if len(changed) > _NAMED else "")
    return (
        f"{len(changed)} of {total} facts ({named}) cannot come back verbatim: the tokenizer changes their targets, so "
        "even with every token recalled the text is another, and none of them is certified. `memlaw check` says what "
        "changes and how to fix it."
    )


def decode(tokenizer: Any, name: str, ids: Sequence[int], *, special: bool = True) -> str:
    """The text of `ids` of the record `name`, with special tokens spelled out unless `special` is false.

    Raises ModelError.
    """
    try:
        return str(tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))
    except Exception as error:  # a tokenizer's own code can raise anything
        raise ModelError(
            f"The tokenizer cannot decode its own ids of record {name!r} ({type(error).__name__}), so the model's "
            "output could not be read. Save the tokenizer again with the library that made it, or use the one the "
            "model was trained with."
        ) from None


def _is_end(base: Speaker, fact: EncodedFact) -> bool:
    """Whether the last token ends the output and is not shown: generation stops there, or it is a special token."""
    last = fact.ids[-1:]
    if last[0] in base.stops:
        return True
    shown, read = (decode(base.tokenizer, fact.id, last, special=special) for special in (True, False))
    return shown != "" == read  # a lone space may decode to nothing either way


def _first_difference(text: str, returned: str) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(text, returned, strict=False)) if a != b), min(len(text), len(returned))
    )


def _kind(text: str, returned: str) -> str:
    if "".join(text.split()) == "".join(returned.split()):
        return "white space"
    if text.casefold() == returned.casefold():
        return "letter case"
    if unicodedata.normalize("NFKD", text) == unicodedata.normalize("NFKD", returned):
        return "Unicode form"
    return "characters"
