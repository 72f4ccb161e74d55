"""How facts become tokens: what is missing, duplicated, cut off or merged on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.data import encode, target_end
from memlaw.data.load import merging_warning
from memlaw.diagnosis.findings import Finding
from memlaw.model.base import Base
from memlaw.model.tokenizer import token_ids

_END = "end-mismatch"


def encodable(memory_set: MemorySet, tokenizer: Any, stops: Sequence[int]) -> tuple[EncodedFact, ...]:
    """The facts that can be encoded, each on its own, so that one fault does not hide another."""

    def alone(fact: Fact) -> MemorySet:
        eos = memory_set.eos and target_end(fact, tokenizer, stops) is not None
        return replace(memory_set, facts=(fact,), eos=eos)

    return tuple(
        encode(alone(fact), tokenizer, context=None, stops=stops)[0]
        for fact in memory_set.facts
        if not any(finding.severity == "error" for finding in _unencodable(fact, tokenizer))
    )


def set_findings(memory_set: MemorySet, base: Base, merging: Sequence[str]) -> Iterator[Finding]:
    """How targets end, and warnings from reading the facts; `merging` holds the ids that `border_merges` gave."""
    tokenizer, many = base.tokenizer, len(memory_set.facts) > 1
    if memory_set.eos:
        yield from _ends(memory_set, tokenizer, base.stops)
    if memory_set.eos and any(target_end(fact, tokenizer, base.stops) is None for fact in memory_set.facts):
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
    elif tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
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


def _ends(memory_set: MemorySet, tokenizer: Any, stops: Sequence[int]) -> Iterator[Finding]:
    """Where tokenizer, chat template and generation config disagree on how an answer ends."""
    eos = tokenizer.eos_token_id
    ends = {target_end(fact, tokenizer, stops): bool(fact.end) for fact in memory_set.facts}
    for end, chat in ends.items():
        if end is None:
            continue
        whose = "The chat template ends answers" if chat else "Targets end"
        shown = _shown(end[-1:], tokenizer)
        if end[-1] not in stops:
            stop = f"stops only at {_shown(stops, tokenizer)}" if stops else "has no token to stop at"
            yield Finding(
                "warning",
                None,
                _END,
                f"{whose} with {shown}, but by the model's generation config `generate` {stop}. It runs on after every "
                "answer, however well the answer is recalled.",
                f"Set model.generation_config.eos_token_id to {[*stops, end[-1]]} and save it beside the model.",
            )
        elif end[-1] != eos:
            theirs = "none" if eos is None else _shown([eos], tokenizer)
            yield Finding(
                "warning" if eos is not None and eos not in stops else "info",
                None,
                _END,
                f"{whose} with {shown}, where `generate` stops, but the tokenizer's end of sequence is {theirs}. "
                "memlaw stores the former; trainers that append the eos_token store another end.",
                f"Set the tokenizer's eos_token to {shown} before using it with another trainer.",
            )


def _shown(ids: Sequence[int], tokenizer: Any) -> str:
    return ", ".join(
        f"{token} (id {id_})" for id_, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    )


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
    ends = _positions(fact.target[:-1], *(base.stops or (tokenizer.eos_token_id,)))
    if ends:
        yield Finding(
            "error",
            fact.id,
            "eos-inside",
            f"Its target contains a token at which generation stops, first at position {ends[0]} of {fact.length:,}.",
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


def _positions(ids: Sequence[int], *tokens: int | None) -> tuple[int, ...]:
    return tuple(position for position, other in enumerate(ids) if other in tokens)


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
