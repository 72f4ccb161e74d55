"""Prompts too close together: those greedy decoding cannot tell apart, and those a person will mix up."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.diagnosis.findings import Finding


def key_findings(memory_set: MemorySet, encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Prompts that are the same tokens, run through one another, or differ in case and space alone."""
    yield from _same_beginnings(encoded)
    yield from _near_duplicates(memory_set)


def _same_beginnings(encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """For each fact, the others whose whole prompt begins its own, as tokens."""
    by_prompt: dict[tuple[int, ...], list[EncodedFact]] = {}
    for fact in encoded:
        by_prompt.setdefault(fact.prompt, []).append(fact)
    lengths = sorted({len(prompt) for prompt in by_prompt})
    for fact in encoded:
        yield from _same_tokens(fact, by_prompt[fact.prompt][0])
        beginnings = (by_prompt.get(fact.prompt[:length], ()) for length in lengths if length < fact.prompt_length)
        yield from _runs_through(fact, [other for facts in beginnings for other in facts])


def _same_tokens(fact: EncodedFact, first: EncodedFact) -> Iterator[Finding]:
    """Against the first fact with these prompt tokens: all of them are to agree with it."""
    if fact is first:
        return
    if fact.target != first.target:
        yield Finding(
            "error",
            fact.id,
            "same-prompt",
            f"Its prompt is the same {fact.prompt_length:,} tokens as that of fact {first.id!r}, but their targets "
            "differ: greedy decoding cannot tell the two apart.",
            "Make the prompts differ in characters that the tokenizer keeps.",
        )
    else:
        yield Finding(
            "info",
            fact.id,
            "repeated-fact",
            f"It is the same tokens as fact {first.id!r}: stored once, it counts twice.",
            "Drop one of the two.",
        )


def _runs_through(fact: EncodedFact, shorter: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Against the facts whose prompt is a proper beginning of this one's: an error each, or one warning for all."""
    clashing = [other for other in shorter if _clash(other, fact)]
    for other in clashing:
        yield Finding(
            "error",
            fact.id,
            "prefix-collision",
            f"Its prompt goes on where the target of fact {other.id!r} does, and then the two demand different tokens: "
            "greedy decoding cannot give both.",
            "Make the prompts differ earlier.",
        )
    if shorter and not clashing:
        yield Finding(
            "warning",
            fact.id,
            "prefix-prompt",
            f"The whole prompt of fact {shorter[-1].id!r} is the beginning of its own: a prompt cut short or run on "
            "gets the other fact's answer.",
            "End every prompt with a mark of its own, such as a colon or a line end.",
        )


def _clash(shorter: EncodedFact, longer: EncodedFact) -> bool:
    """Whether both demand a token after the same tokens, and not the same one."""
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
                f"Its prompt differs from that of fact {earlier!r} only in case, white space or the form of its "
                "characters: people will ask for the one with the other.",
                "Make the prompts differ in a word, or keep one of the two.",
            )


def _folded(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
