"""How facts become tokens: what is missing, doubled, cut or merged on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.data import encode
from memlaw.data.load import merging_warning
from memlaw.diagnosis.findings import Finding
from memlaw.model.base import Base
from memlaw.model.tokenizer import token_ids


def encodable(memory_set: MemorySet, tokenizer: Any) -> tuple[EncodedFact, ...]:
    """The facts that have tokens, each encoded by itself, so that one fault hides no other."""
    eos = memory_set.eos and tokenizer.eos_token_id is not None
    return tuple(
        encode(replace(memory_set, facts=(fact,), eos=eos), tokenizer, context=None)[0]
        for fact in memory_set.facts
        if not any(finding.severity == "error" for finding in _unencodable(fact, tokenizer))
    )


def set_findings(memory_set: MemorySet, tokenizer: Any, merging: Sequence[str]) -> Iterator[Finding]:
    """Where targets end, and what was noticed on reading; `merging` are the facts with `border_merges`."""
    many = len(memory_set.facts) > 1
    if memory_set.eos and tokenizer.eos_token_id is None:
        yield Finding(
            "error",
            None,
            "no-eos-token",
            "The targets are to end with the end-of-sequence token, but the tokenizer has none.",
            "Give the tokenizer an eos_token, or store the targets without (--no-eos).",
        )
    elif not memory_set.eos:
        yield Finding(
            "warning" if many else "info",
            None,
            "no-eos",
            "The targets are stored without an end of sequence: decoding runs on behind each of them.",
            "Store it too (--eos), unless whoever decodes knows every length.",
        )
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield Finding(
            "warning",
            None,
            "pad-is-eos",
            "The padding token is the end-of-sequence token. A trainer that leaves padding out of the labels by its id "
            "leaves the end of every target out too (memlaw itself does not).",
            "Give the tokenizer a padding token of its own before another trainer gets it.",
        )
    if tokenizer.pad_token_id is None:
        yield Finding(
            "info",
            None,
            "no-pad-token",
            "The tokenizer has no padding token. memlaw needs none, but trainers refuse to batch without, or pad with "
            "the end of sequence.",
            "Set a pad_token that is not the eos_token before another trainer gets the tokenizer.",
        )
    for warning in memory_set.warnings:
        if not merging or warning != merging_warning(merging, memory_set):  # below, that is a finding on each fact
            yield Finding("warning", None, "reading", warning, "Mend the source if that is not what you meant.")


def token_findings(
    memory_set: MemorySet, encoded: Sequence[EncodedFact], base: Base, merging: Sequence[str]
) -> Iterator[Finding]:
    """Fact by fact: no tokens, a doubled start, more than the context, an early end, unknown tokens, merged borders."""
    tokenizer = base.tokenizer
    for fact in memory_set.facts:
        yield from _unencodable(fact, tokenizer)
    for one in encoded:
        if base.context is not None and len(one.ids) > base.context:
            yield Finding(
                "error",
                one.id,
                "too-long",
                f"It has {len(one.ids):,} tokens ({one.prompt_length:,} of its prompt, {one.length:,} of its target), "
                f"but the context of the model is {base.context:,}: its end would be cut off.",
                "Split the fact, or use a model with a longer context.",
            )
        ends = _positions(one.target[:-1], tokenizer.eos_token_id)
        if ends:
            yield Finding(
                "error",
                one.id,
                "eos-inside",
                f"The end-of-sequence token is inside its target, first at position {ends[0]} of {one.length:,}: "
                "decoding stops there.",
                "Remove it from the text; memlaw adds the one at the end itself (--eos).",
                ends,
            )
        unknown = _positions(one.target, tokenizer.unk_token_id)
        if unknown:
            yield Finding(
                "error",
                one.id,
                "unknown-token",
                f"{len(unknown):,} of the {one.length:,} tokens of its target {_are(unknown)} the tokenizer's unknown "
                f"token, first at position {unknown[0]}: that text is lost, however well the tokens are recalled.",
                "Write the target in characters the tokenizer knows, or use a model whose tokenizer knows these.",
                unknown,
            )
    for name in merging:
        yield Finding(
            "warning",
            name,
            "border-merge",
            "Its prompt and target are cut into other tokens where they are one text, so a trainer or a prompt that "
            "lets the text run on meets other tokens than those stored.",
            "Put the space or line end between the two at the start of the target, not at the end of the prompt.",
        )


def _unencodable(fact: Fact, tokenizer: Any) -> Iterator[Finding]:
    prompt, bos = token_ids(tokenizer, fact.prompt), tokenizer.bos_token_id
    target = token_ids(tokenizer, fact.target) if fact.target_ids is None else fact.target_ids
    for name, ids in (("prompt", prompt), ("target", target)):
        if not ids:
            yield Finding(
                "error",
                fact.id,
                "no-tokens",
                f"Its {name} has no tokens under this tokenizer.",
                f"Write the {name} in characters the tokenizer knows.",
            )
    if bos is None:
        return
    if prompt[:2] == (bos, bos):
        yield Finding(
            "error",
            fact.id,
            "doubled-bos",
            "Its prompt begins with the beginning-of-sequence token twice, which no model was trained on.",
            "Remove it from the text: the tokenizer adds it.",
        )
    elif tokenizer.encode(fact.prompt, add_special_tokens=True, verbose=False)[:2] == [bos, bos]:
        yield Finding(
            "warning",
            fact.id,
            "doubled-bos",
            "Its prompt begins with the beginning-of-sequence token, and the tokenizer puts one before every text: "
            "memlaw keeps one, others train and ask with two.",
            "Remove it from the text, or tokenise with add_special_tokens=False everywhere.",
        )


def _positions(ids: Sequence[int], token: int | None) -> tuple[int, ...]:
    return tuple(position for position, one in enumerate(ids) if one == token)


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
