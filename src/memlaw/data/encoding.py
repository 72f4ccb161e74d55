"""From facts to the tokens an adapter must store, and the prefixes of them that make the law's length axis."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from memlaw.core.canonical import digest
from memlaw.core.errors import DataError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.model.tokenizer import Tokenizer, special_tokens, stop_ids, token_ids


def encode(
    memory_set: MemorySet, tokenizer: Tokenizer, *, context: int | None, stops: Sequence[int] | None = None
) -> tuple[EncodedFact, ...]:
    """Encode the facts as token ids: [BOS] + tokens(prompt) + tokens(target) [+ end]. Nothing is ever truncated.

    BOS is added if the tokenizer itself adds it, and only once, even where a chat template wrote it too. The target is
    tokenised alone, since it is what is stored; `border_merges` lists the facts where tokenising both together gives
    other tokens. The end (see `target_end`) is added if `memory_set.eos`; `stops` are the ids at which the model's
    `generate` stops (`Base.stops`, or `stop_ids_of_files`), by default the tokenizer's end of sequence. A fact with
    `target_ids` keeps those. `context` is the number of positions of the model (None: unchecked, for callers that take
    a prefix first and then call `check_context`).

    Raises DataError for a prompt or target without tokens, a missing end-of-sequence token, a fact longer than the
    context, and facts that require different tokens after the same tokens.
    """
    bos = leading_bos(tokenizer)
    stops = stop_ids(tokenizer, None) if stops is None else stops
    encoded = tuple(
        _encode_fact(fact, tokenizer, bos, _ending(fact, tokenizer, stops) if memory_set.eos else ())
        for fact in memory_set.facts
    )
    _refuse_contradictions(encoded)
    if context is not None:
        check_context(encoded, context)
    return encoded


def encode_prompts(prompts: Iterable[str], tokenizer: Tokenizer) -> tuple[EncodedFact, ...]:
    """Encode prompts alone, as `encode` does those of facts: `ids` ends with the prompt, and no target follows.

    Their ids are their numbers, from 1. Raises DataError as `encode` does.
    """
    bos = leading_bos(tokenizer)
    facts = (Fact(prompt, "", str(number)) for number, prompt in enumerate(prompts, start=1))
    encoded = ((fact, _encode_prompt(fact, tokenizer, bos)) for fact in facts)
    return tuple(EncodedFact(fact.id, ids, len(ids)) for fact, ids in encoded)


def stored_fingerprint(memory_set: MemorySet, tokenizer: Tokenizer, stops: Sequence[int]) -> str:
    """Names what is stored of a memory set: its fingerprint, and the end of targets where that is unusual.

    Usual is the tokenizer's end of sequence: then it is the fingerprint itself.
    """
    plain = [fact for fact in memory_set.facts if not fact.end] if memory_set.eos else []
    end = target_end(plain[0], tokenizer, stops) if plain else None
    if end is None or end == (tokenizer.eos_token_id,):
        return memory_set.fingerprint
    return digest({"facts": memory_set.fingerprint, "end": end})


def check_context(encoded: Iterable[EncodedFact], context: int) -> None:
    """Raise DataError for the first fact with more tokens (prompt and target) than the model has positions."""
    for fact in encoded:
        if len(fact.ids) > context:
            raise DataError(
                f"Fact {fact.id!r} has {len(fact.ids)} tokens ({fact.prompt_length} of its prompt, {fact.length} of "
                f"its target), but the context of the model is {context}. Facts are never truncated: split the fact, "
                "or use a model with a longer context."
            )


def border_merges(memory_set: MemorySet, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Ids of the facts for which tokens(prompt + target) != tokens(prompt) + tokens(target).

    Such a fact can be stored and recalled as it is, but code that tokenises prompt and target together (another
    trainer, a prompt that already holds the start of the answer) gets other tokens. Moving a space or line end from
    the end of the prompt to the start of the target fixes most cases.
    """
    return tuple(
        fact.id
        for fact in memory_set.facts
        if fact.target_ids is None
        and token_ids(tokenizer, fact.prompt + fact.target)
        != token_ids(tokenizer, fact.prompt) + token_ids(tokenizer, fact.target)
    )


def target_tokens(encoded: Iterable[EncodedFact]) -> int:
    """Total number of target tokens: the length l of the law."""
    return sum(fact.length for fact in encoded)


def take(encoded: Sequence[EncodedFact], length: int) -> tuple[EncodedFact, ...]:
    """Take the prefix of a memory set for one point of the length axis, `length` in target tokens.

    A single fact is cut to exactly `length` tokens, so it ends without end-of-sequence unless taken whole. Of several
    facts, it is the longest run of whole facts from the first with at most `length` tokens. Prefixes are nested. Raises
    DataError for a length beyond the data or below the first fact.
    """
    available = target_tokens(encoded)
    if not 1 <= length <= available:
        raise DataError(
            f"A length of {length} target tokens was requested, but the data allow 1 to {available}. A cell of the law "
            "must hold exactly its length: choose lengths within the data, or add data."
        )
    if len(encoded) == 1:
        fact = encoded[0]
        whole = length == fact.length  # a part of the tokens spells a part of the text, whose border is unknown
        cut = fact.ids[: fact.prompt_length + length]
        return (EncodedFact(fact.id, cut, fact.prompt_length, fact.text if whole else None),)
    count = bisect_right(list(accumulate(fact.length for fact in encoded)), length)
    if count == 0:
        raise DataError(
            f"A length of {length} target tokens was requested, but the first fact ({encoded[0].id!r}) alone has "
            f"{encoded[0].length}, and facts are never truncated. Choose a length of at least {encoded[0].length}."
        )
    return tuple(encoded[:count])


def leading_bos(tokenizer: Tokenizer) -> tuple[int, ...]:
    """(BOS,) if the tokenizer puts one before the empty text, else ()."""
    bos = tokenizer.bos_token_id
    start = tokenizer.encode("", add_special_tokens=True, verbose=False)[:1]
    return (bos,) if bos is not None and start == [bos] else ()


def target_end(fact: Fact, tokenizer: Tokenizer, stops: Sequence[int]) -> tuple[int, ...] | None:
    """The tokens that end a target: what generation emits after the answer, up to the token at which it stops.

    An answer of a chat ends as its template ends it: with what follows the answer, up to and including the first token
    of `stops`, or, where generation stops at none of them, the first special token. Any other fact, and an answer after
    which the template writes nothing special, ends with the first of `stops`, which is the tokenizer's end of sequence
    where generation stops there. None if neither the model nor the tokenizer has an end of sequence.
    """
    if fact.end:
        after = token_ids(tokenizer, fact.end)
        for enders in (stops, special_tokens(tokenizer).keys()):
            last = next((position for position, token in enumerate(after) if token in enders), None)
            if last is not None:
                return after[: last + 1]
    if stops:
        return (stops[0],)
    return None if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


def _ending(fact: Fact, tokenizer: Tokenizer, stops: Sequence[int]) -> tuple[int, ...]:
    end = target_end(fact, tokenizer, stops)
    if end is None:
        raise DataError(
            "The targets should end with the end-of-sequence token, but the generation config names none and the "
            "tokenizer has none, so decoding would not know where to stop. Choose eos=False (--no-eos), or set the "
            "tokenizer's eos_token."
        )
    return end


def _encode_fact(fact: Fact, tokenizer: Tokenizer, bos: tuple[int, ...], ending: tuple[int, ...]) -> EncodedFact:
    prompt = _encode_prompt(fact, tokenizer, bos)
    target = fact.target_ids if fact.target_ids is not None else token_ids(tokenizer, fact.target)
    if not target:
        raise DataError(
            f"The target of {_name(fact)} has no tokens under this tokenizer, so there is nothing to recall. Use "
            "characters that the tokenizer knows."
        )
    text = fact.target + _before_end(fact, tokenizer, ending) if fact.target_ids is None else None
    return EncodedFact(id=fact.id, ids=prompt + target + ending, prompt_length=len(prompt), text=text)


def _encode_prompt(fact: Fact, tokenizer: Tokenizer, bos: tuple[int, ...]) -> tuple[int, ...]:
    prompt = token_ids(tokenizer, fact.prompt)
    if not prompt:
        raise DataError(
            f"The prompt of {_name(fact)} has no tokens under this tokenizer, so the model would be shown nothing. Use "
            "characters that the tokenizer knows."
        )
    if bos and prompt[:1] != bos:
        prompt = bos + prompt
    if bos and prompt[:2] == bos + bos:
        raise DataError(
            f"The prompt of {_name(fact)} begins with the beginning-of-sequence token twice, which no model was "
            "trained on. Remove it from the text: the tokenizer adds it."
        )
    return prompt


def _before_end(fact: Fact, tokenizer: Any, ending: tuple[int, ...]) -> str:
    """What the chat template writes between an answer and the token that ends it, such as a line end."""
    return (fact.end or "").partition(tokenizer.convert_ids_to_tokens(ending[-1]))[0] if len(ending) > 1 else ""


def _name(fact: Fact) -> str:
    return f"fact {fact.id!r}" if fact.line is None else f"fact {fact.id!r} (line or row {fact.line})"


def _refuse_contradictions(encoded: Iterable[EncodedFact]) -> None:
    """Refuse two facts that require different next tokens after the same tokens: greedy decoding gives only one.

    Walks the trie of all token sequences; each target token is required at the node before it.
    """
    prompts: dict[tuple[int, ...], EncodedFact] = {}
    children: dict[tuple[int, int], int] = {}
    required: dict[int, tuple[int, str]] = {}
    for fact in encoded:
        other = prompts.setdefault(fact.prompt, fact)
        if other.target != fact.target:
            raise DataError(
                f"The prompts of facts {other.id!r} and {fact.id!r} are the same {fact.prompt_length} tokens, but "
                "their targets differ: greedy decoding cannot tell the two apart. Make the prompts differ."
            )
        node = 0
        for position, token in enumerate(fact.ids):
            if position >= fact.prompt_length:
                earlier, by = required.setdefault(node, (token, fact.id))
                if earlier != token:
                    raise DataError(
                        f"Facts {by!r} and {fact.id!r} share their first {position} tokens (one's prompt overlaps the "
                        "other's target) and then require different ones: greedy decoding cannot give both. Make the "
                        "prompts differ earlier."
                    )
            node = children.setdefault((node, token), len(children) + 1)
