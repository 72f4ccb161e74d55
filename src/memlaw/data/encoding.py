"""From facts to the tokens an adapter must store, and the prefixes of them that make the law's length axis."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from memlaw.core.errors import DataError
from memlaw.core.facts import EncodedFact, Fact, MemorySet
from memlaw.model.tokenizer import Tokenizer, token_ids


def encode(memory_set: MemorySet, tokenizer: Tokenizer, *, context: int | None) -> tuple[EncodedFact, ...]:
    """The facts as token ids: [BOS] + tokens(prompt) + tokens(target) [+ EOS], nothing ever cut.

    BOS is there exactly if the tokenizer itself puts it before a text, once even where a chat template wrote it too.
    The target is tokenised alone, since it is what is stored; `border_merges` says where that differs from the two
    together. EOS is there exactly if `memory_set.eos`. A fact with `target_ids` has those. `context` is the number
    of positions the model has (None: not checked, for callers that take a prefix first and then `check_context`).

    Raises DataError for a prompt or target without tokens, an end-of-sequence token the tokenizer lacks, a fact
    longer than the context, and facts that demand different tokens after the same tokens.
    """
    bos = _leading_bos(tokenizer)
    ending = _ending(memory_set, tokenizer)
    encoded = tuple(_encode_fact(fact, tokenizer, bos, ending) for fact in memory_set.facts)
    _refuse_contradictions(encoded)
    if context is not None:
        check_context(encoded, context)
    return encoded


def check_context(encoded: Iterable[EncodedFact], context: int) -> None:
    """Raises DataError for the first fact with more tokens (prompt and target) than the model has positions."""
    for fact in encoded:
        if len(fact.ids) > context:
            raise DataError(
                f"Fact {fact.id!r} has {len(fact.ids)} tokens ({fact.prompt_length} of its prompt, {fact.length} of "
                f"its target), but the context of the model is {context}. Nothing is ever cut off: split the fact, or "
                "use a model with a longer context."
            )


def border_merges(memory_set: MemorySet, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Ids of the facts for which tokens(prompt + target) != tokens(prompt) + tokens(target).

    Such a fact is stored and recalled as it stands, but text that runs on from prompt to target is cut differently, so
    whoever tokenises the two together (another trainer, a prompt that already holds the start of the answer) meets
    other tokens. A space or line end at the start of the target, rather than at the end of the prompt, mends most.
    """
    return tuple(
        fact.id
        for fact in memory_set.facts
        if fact.target_ids is None
        and token_ids(tokenizer, fact.prompt + fact.target)
        != token_ids(tokenizer, fact.prompt) + token_ids(tokenizer, fact.target)
    )


def target_tokens(encoded: Iterable[EncodedFact]) -> int:
    """Target tokens in all: the length l of the law."""
    return sum(fact.length for fact in encoded)


def take(encoded: Sequence[EncodedFact], length: int) -> tuple[EncodedFact, ...]:
    """The prefix of a memory set for one point of the length axis, `length` in target tokens.

    A single fact is cut to exactly `length` tokens (so a shorter one ends without end-of-sequence); of several, the
    longest run of whole facts from the first with at most `length` tokens. A longer prefix begins with every shorter
    one. Raises DataError for a length beyond the data or below its first fact.
    """
    available = target_tokens(encoded)
    if not 1 <= length <= available:
        raise DataError(
            f"A length of {length} target tokens was asked for, but the data have 1 to {available}. A cell of the law "
            "must hold what its length says: choose lengths within the data, or add data."
        )
    if len(encoded) == 1:
        fact = encoded[0]
        return (EncodedFact(fact.id, fact.ids[: fact.prompt_length + length], fact.prompt_length),)
    count = bisect_right(list(accumulate(fact.length for fact in encoded)), length)
    if count == 0:
        raise DataError(
            f"A length of {length} target tokens was asked for, but the first fact ({encoded[0].id!r}) alone has "
            f"{encoded[0].length}, and facts are never cut. Choose a length of at least {encoded[0].length}."
        )
    return tuple(encoded[:count])


def _leading_bos(tokenizer: Tokenizer) -> tuple[int, ...]:
    """(BOS,) if the tokenizer puts one before the empty text, else ()."""
    bos = tokenizer.bos_token_id
    start = tokenizer.encode("", add_special_tokens=True, verbose=False)[:1]
    return (bos,) if bos is not None and start == [bos] else ()


def _ending(memory_set: MemorySet, tokenizer: Tokenizer) -> tuple[int, ...]:
    if not memory_set.eos:
        return ()
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The targets are to end with the end-of-sequence token, but the tokenizer has none, so decoding would not "
            "know where to stop. Choose eos=False (--no-eos), or give the tokenizer an eos_token."
        )
    return (tokenizer.eos_token_id,)


def _encode_fact(fact: Fact, tokenizer: Tokenizer, bos: tuple[int, ...], ending: tuple[int, ...]) -> EncodedFact:
    prompt = token_ids(tokenizer, fact.prompt)
    if not prompt:
        raise DataError(
            f"The prompt of {_name(fact)} has no tokens under this tokenizer, so there is nothing to ask with. Give it "
            "a prompt in characters the tokenizer knows."
        )
    if bos and prompt[:1] != bos:
        prompt = bos + prompt
    if bos and prompt[:2] == bos + bos:
        raise DataError(
            f"The prompt of {_name(fact)} begins with the beginning-of-sequence token twice, which no model was "
            "trained on. Remove it from the text: the tokenizer adds it."
        )
    target = fact.target_ids if fact.target_ids is not None else token_ids(tokenizer, fact.target)
    if not target:
        raise DataError(
            f"The target of {_name(fact)} has no tokens under this tokenizer, so there is nothing to recall. Give it a "
            "target in characters the tokenizer knows."
        )
    return EncodedFact(id=fact.id, ids=prompt + target + ending, prompt_length=len(prompt))


def _name(fact: Fact) -> str:
    return f"fact {fact.id!r}" if fact.line is None else f"fact {fact.id!r} (line or row {fact.line})"


def _refuse_contradictions(encoded: Iterable[EncodedFact]) -> None:
    """Greedy decoding is a function of the tokens so far: two facts may not demand two continuations of the same ones.

    Walks the trie of all token sequences. Each target token is a demand on the node before it; a node has one answer.
    """
    prompts: dict[tuple[int, ...], EncodedFact] = {}
    children: dict[tuple[int, int], int] = {}
    demands: dict[int, tuple[int, str]] = {}
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
                demanded, by = demands.setdefault(node, (token, fact.id))
                if demanded != token:
                    raise DataError(
                        f"Facts {by!r} and {fact.id!r} share their first {position} tokens (one's prompt goes on where "
                        "the other's target does) and then demand different ones: greedy decoding cannot give both. "
                        "Make the prompts differ earlier."
                    )
            node = children.setdefault((node, token), len(children) + 1)
