"""Near misses: prompts shaped like the stored ones that were not stored, such as a name that is not in the phone book.

An adapter that answers one with a stored value has learned the shape of the question, not the key in it. Each near miss
joins the beginning of one stored prompt to the end of another, where both have the same words or separators: "Jerry
Becerra:" and "Robin Osteen:" give "Jerry Osteen:". What all prompts share, such as a chat template, stays as it is.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from random import Random
from typing import Literal

from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.data.encoding import encode_prompts
from memlaw.model.tokenizer import Tokenizer

Part = Literal["measuring", "training"]
"""Which near misses: those for measuring and those to rehearse have none in common."""

_PIECES = re.compile(r"\w+|\s+|[^\w\s]")
_LONGEST = 400  # pieces in which two prompts may differ: finding what they share takes time by the square
_TRIES = 40  # pairs of prompts that are tried for each near miss wanted

_Join = Callable[[str, str], Sequence[str]]


def encoded_near_misses(
    memory_set: MemorySet, tokenizer: Tokenizer, count: int, *, seed: int, part: Part
) -> tuple[EncodedFact, ...]:
    """`near_misses` of the prompts of a memory set, as tokens: facts without a target. Raises DataError."""
    prompts = [fact.prompt for fact in memory_set.facts]
    return encode_prompts(near_misses(prompts, count, seed=seed, part=part), tokenizer)


def near_misses(prompts: Sequence[str], count: int, *, seed: int, part: Part) -> tuple[str, ...]:
    """At most `count` prompts that are none of `prompts`, up to case and white space, made of two of them each.

    Fewer, or none, where the prompts have too little in common or too little to exchange, as a single one has. The same
    arguments give the same near misses. Half of all that there are, by their SHA-256, belong to each part.
    """
    stored = {_normalised(prompt) for prompt in prompts}
    parents = _without_later_turns(prompts)
    found: dict[str, str] = {}
    for join in (_joined_at_words, _joined_within_words):
        for first, second in _pairs(parents, _TRIES * count, Random(seed)):
            if len(found) == count:
                return tuple(found.values())
            for text in join(first, second):
                key = _normalised(text)
                if key not in stored and key not in found and _part(key) == part:
                    found[key] = text
                    break
    return tuple(found.values())


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _part(key: str) -> Part:
    return "measuring" if hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[0] % 2 else "training"


def _without_later_turns(prompts: Sequence[str]) -> list[str]:
    """The prompts that do not begin with another: the history of a chat holds the answers to its earlier turns."""
    kept: list[str] = []
    for prompt in sorted(set(prompts)):
        if not kept or not prompt.startswith(kept[-1]):
            kept.append(prompt)
    return kept


def _pairs(prompts: Sequence[str], tries: int, random: Random) -> Iterator[tuple[str, str]]:
    """Ordered pairs of different prompts: all of them in random order, or `tries` if there are more."""
    if len(prompts) * (len(prompts) - 1) <= tries:
        every = list(permutations(prompts, 2))
        random.shuffle(every)
        yield from every
        return
    for _ in range(tries):
        first, second = random.sample(prompts, 2)
        yield first, second


def _joined_at_words(first: str, second: str) -> Sequence[str]:
    """The beginning of `first` and the end of `second`, cut after the longest run of pieces that both hold."""
    parts = _differing(first, second)
    if parts is None:
        return ()
    before, a, b, after = parts
    joined: dict[int, list[str]] = {}
    for length, i, j in _shared_runs(a, b):
        joined.setdefault(length, []).append("".join([*before, *a[:i], *b[j:], *after]))
    return joined[max(joined)] if joined else ()


def _shared_runs(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Length of each run of pieces that both hold, and where it ends in each, if they differ before and after it.

    White space alone, which is everywhere, counts only as far from the start, or from the end, of one as of the other.
    """
    above = [0] * (len(b) + 1)  # length of the run that ends before each place of b and the last place of a
    for i in range(1, len(a)):
        row = [0] * (len(b) + 1)
        for j in range(1, len(b)):
            length = row[j] = above[j - 1] + 1 if a[i - 1] == b[j - 1] else 0
            if length and a[i] != b[j] and length < min(i, j):
                blank = length == 1 and a[i - 1].isspace()
                if not blank or i == j or len(a) - i == len(b) - j:
                    yield length, i, j
        above = row


def _joined_within_words(first: str, second: str) -> Sequence[str]:
    """The same where two prompts differ in one piece: the first half of one and the rest of the other."""
    parts = _differing(first, second)
    if parts is None:
        return ()
    before, a, b, after = parts
    if len(a) != 1 or len(b) != 1:
        return ()
    half = (len(a[0]) + 1) // 2
    return ("".join([*before, a[0][:half], b[0][half:], *after]),) if half < len(b[0]) else ()


def _differing(first: str, second: str) -> tuple[list[str], list[str], list[str], list[str]] | None:
    """The pieces that both texts begin with, those in which they differ, of the first and second, and those they end
    with. None if they differ in their lines, or in too much."""
    a, b = _PIECES.findall(first), _PIECES.findall(second)
    shorter = min(len(a), len(b))
    start = next((place for place in range(shorter) if a[place] != b[place]), shorter)
    room = shorter - start
    end = next((back for back in range(room) if a[-1 - back] != b[-1 - back]), room)
    middles = a[start : len(a) - end], b[start : len(b) - end]
    lines = {"".join(middle).count("\n") for middle in middles}
    if len(lines) > 1 or max(map(len, middles)) > _LONGEST:
        return None
    return a[:start], *middles, a[len(a) - end :]
