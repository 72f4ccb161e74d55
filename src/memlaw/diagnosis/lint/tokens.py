"""How facts become tokens: what is missing, duplicated, cut off or merged on the way."""

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
    """The facts that can be encoded, each on its own, so that one fault does not hide another."""
    eos = memory_set.eos and tokenizer.eos_token_id is not None
    return tuple(
        encode(replace(memory_set, facts=(fact,), eos=eos), tokenizer, context=None)[0]
        for fact in memory_set.facts
        if not any(finding.severity == "error" for finding in _unencodable(fact, tokenizer))
    )


def set_findings(memory_set: MemorySet, tokenizer: Any, merging: Sequence[str]) -> Iterator[Finding]:
    """How targets end, and warnings from reading the facts; `merging` holds the ids that `border_merges` gave."""
    many = len(memory_set.facts) > 1
    if memory_set.eos and tokenizer.eos_token_id is None:
        yield Finding(
            "error",
            None,
            "no-eos-token",
            "The targets should end with the end-of-sequence token, but the tokenizer does not have one.",
            "Set the tokenizer's eos_token, or store the targets without it (--no-eos).",
        )
    elif not memory_set.eos:
        yield Finding(
            "warning" if many else "info",
            None,
            "no-eos",
            "The targets are stored without an end-of-sequence token, so decoding runs on after each of them.",
            "Store it too (--eos), unless the length of every target is known when decoding.",
        )
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield Finding(
            "warning",
            None,
            "pad-is-eos",
            "The padding token is also the end-of-sequence token. Trainers that mask padding in the labels by its id "
            "also mask the end of every target (memlaw does not).",
            "Set a pad_token that is not the eos_token before using the tokenizer with another trainer.",
        )
    if tokenizer.pad_token_id is None:
        yield Finding(
            "info",
            None,
            "no-pad-token",
            "The tokenizer does not have a padding token. memlaw does not need one, but other trainers either refuse "
            "to batch or pad with the end-of-sequence token.",
            "Set a pad_token that is not the eos_token before using the tokenizer with another trainer.",
        )
    for warning in memory_set.warnings:
        if not merging or warning != merging_warning(merging, memory_set):  # token_findings has one for each fact
            yield Finding("warning", None, "reading", warning, "If this is not what you want, correct the source.")


def token_findings(
    memory_set: MemorySet, encoded: Sequence[EncodedFact], base: Base, merging: Sequence[str]
) -> Iterator[Finding]:
    """Fact by fact: no tokens, duplicated BOS, too long, EOS inside the target, unknown tokens, merged borders."""
    for fact in memory_set.facts:
        yield from _unencodable(fact, base.tokenizer)
    for encoded_fact in encoded:
        yield from _broken_target(encoded_fact, base)
    for name in merging:
        yield Finding(
            "warning",
            name,
            "border-merge",
            "Tokenized as one text, its prompt and target give different tokens than tokenized separately. A trainer "
            "or a prompt that joins the two does not see the tokens that are stored.",
            "Move the space or newline between the two from the end of the prompt to the start of the target.",
        )


def _broken_target(fact: EncodedFact, base: Base) -> Iterator[Finding]:
    """A fact that is too long, ends early, or lost characters on the way to tokens."""
    tokenizer = base.tokenizer
    if base.context is not None and len(fact.ids) > base.context:
        yield Finding(
            "error",
            fact.id,
            "too-long",
            f"It has {len(fact.ids):,} tokens ({fact.prompt_length:,} in its prompt, {fact.length:,} in its "
            f"target), but the model's context holds {base.context:,}, so its end would be cut off.",
            "Split the fact, or use a model with a longer context.",
        )
    ends = _positions(fact.target[:-1], tokenizer.eos_token_id)
    if ends:
        yield Finding(
            "error",
            fact.id,
            "eos-inside",
            f"Its target contains the end-of-sequence token, first at position {ends[0]} of {fact.length:,}. "
            "Decoding stops there.",
            "Remove it from the text; memlaw adds the one at the end itself (--eos).",
            ends,
        )
    unknown = _positions(fact.target, tokenizer.unk_token_id)
    if unknown:
        yield Finding(
            "error",
            fact.id,
            "unknown-token",
            f"{len(unknown):,} of its {fact.length:,} target tokens {_are(unknown)} the tokenizer's unknown token, "
            f"first at position {unknown[0]}. The text they stand for is lost, however well the tokens are recalled.",
            "Write the target in characters the tokenizer knows, or use a model whose tokenizer knows these.",
            unknown,
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
                f"Its {name} has no tokens with this tokenizer.",
                f"Write the {name} in characters the tokenizer knows.",
            )
    if bos is None:
        return
    if prompt[:2] == (bos, bos):
        yield Finding(
            "error",
            fact.id,
            "doubled-bos",
            "Its prompt starts with the beginning-of-sequence token twice, which models never see in training.",
            "Remove it from the text; the tokenizer adds it.",
        )
    elif tokenizer.encode(fact.prompt, add_special_tokens=True, verbose=False)[:2] == [bos, bos]:
        yield Finding(
            "warning",
            fact.id,
            "doubled-bos",
            "Its prompt starts with the beginning-of-sequence token, and the tokenizer adds another. memlaw keeps one; "
            "other tools train and ask with two.",
            "Remove it from the text, or tokenize with add_special_tokens=False everywhere.",
        )


def _positions(ids: Sequence[int], token: int | None) -> tuple[int, ...]:
    return tuple(position for position, other in enumerate(ids) if other == token)


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
