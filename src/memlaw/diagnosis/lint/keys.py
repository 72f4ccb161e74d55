"""Prompts that are too similar: greedy decoding cannot tell some apart, and people will confuse others."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.diagnosis.findings import Finding


def key_findings(memory_set: MemorySet, encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Prompts that are the same tokens, continue one another, or differ only in case and white space."""
    yield from _same_beginnings(encoded)
    yield from _near_duplicates(memory_set)


def _same_beginnings(encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Facts whose prompt, as tokens, equals that of another fact or starts with it."""
    by_prompt: dict[tuple[int, ...], list[EncodedFact]] = {}
    for fact in encoded:
        by_prompt.setdefault(fact.prompt, []).append(fact)
    lengths = sorted({len(prompt) for prompt in by_prompt})
    for fact in encoded:
        yield from _same_tokens(fact, by_prompt[fact.prompt][0])
        beginnings = (by_prompt.get(fact.prompt[:length], ()) for length in lengths if length < fact.prompt_length)
        yield from _longer_prompt(fact, [other for facts in beginnings for other in facts])


def _same_tokens(fact: EncodedFact, first: EncodedFact) -> Iterator[Finding]:
    """Compared with the first fact that has these prompt tokens; comparing with it alone finds every conflict."""
    if fact is first:
        return
    if fact.target != first.target:
        yield Finding(
            "error",
            fact.id,
            "same-prompt",
            f"Its prompt is the same {fact.prompt_length:,} tokens as that of fact {first.id!r}, but their targets "
            "differ. Greedy decoding can give only one of them.",
            "Make the prompts differ in characters that the tokenizer keeps.",
        )
    else:
        yield Finding(
            "info",
            fact.id,
            "repeated-fact",
            f"It has the same tokens as fact {first.id!r}. It is stored once but counted twice.",
            "Remove one of the two.",
        )


def _longer_prompt(fact: EncodedFact, shorter: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Compared with the facts whose prompt this one's starts with: one error per conflict, or one warning for all."""
    clashing = [other for other in shorter if _clash(other, fact)]
    for other in clashing:
        yield Finding(
            "error",
            fact.id,
            "prefix-collision",
            f"Its prompt starts with the prompt of fact {other.id!r} and continues into that fact's target. After the "
            "same tokens the two then need different ones, and greedy decoding can give only one.",
            "Make the prompts differ earlier.",
        )
    # A later question of the same chat starts with the earlier one and its whole answer: nothing to confuse.
    shorter = [other for other in shorter if fact.prompt[: len(other.ids)] != other.ids]
    if shorter and not clashing:
        yield Finding(
            "warning",
            fact.id,
            "prefix-prompt",
            f"Its prompt starts with the whole prompt of fact {shorter[-1].id!r}. If a prompt is cut short or "
            "continued, the answer is that of the other fact.",
            "End every prompt with a delimiter, such as a colon or a newline.",
        )


def _clash(shorter: EncodedFact, longer: EncodedFact) -> bool:
    """Whether both targets need a token after the same tokens, but not the same one."""
    for position, (a, b) in enumerate(zip(shorter.ids, longer.ids, strict=False)):
        if a != b:
            return position >= longer.prompt_length
    return False


def _near_duplicates(memory_set: MemorySet) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for fact in memory_set.facts:
        earlier = seen.setdefault(_folded(fact.prompt), fact.id)
        if earlier != fact.id:
            yield Finding(
                "warning",
                fact.id,
                "near-duplicate",
                f"Its prompt differs from that of fact {earlier!r} only in case, white space or Unicode form, so "
                "people will ask for one and mean the other.",
                "Make the prompts differ by a word, or keep only one of the two.",
            )


def _folded(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
