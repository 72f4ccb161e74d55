"""Mutations of valid inputs: parts are cut, doubled, flipped, spliced or replaced by strings that break parsers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

HOSTILE = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n\n", b"\t", b"\\ud800", b"\\u0000",
    b"\xe2\x80\xa8", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1e-4", b"0x10", b"9" * 400, b"1_000", b"true",
    b"null", b"{}", b"[]", b'"', b"'", b"`", b",", b";", b":", b"{", b"}", b"[", b"]", b"&a", b"*a", b"<<",
    b"!!python/name:os.system", b"%", b"../../../../etc/passwd", b"/etc/passwd", b"~", b"C:\\\\", b"CON", b"a/b",
    b"[" * 3000, b'{"a":' * 3000,
    b"x" * 70000,
]  # fmt: skip


def mutated(content: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """`content` after one to four changes; it may be spliced with parts of `others`."""
    mutant = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        chance.choice(_CHANGES)(mutant, others, chance)
    return bytes(mutant)


def _flip(content: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _replace(content: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    start, end = _span(content, chance)
    content[start:end] = chance.choice(HOSTILE)


def _insert(content: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    start = chance.randint(0, len(content))
    content[start:start] = chance.choice(HOSTILE)


def _cut(content: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    start, end = _span(content, chance)
    del content[start:end]


def _double(content: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    start, end = _span(content, chance)
    content[start:start] = content[start:end]


def _truncate(content: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    del content[chance.randint(0, len(content)) :]


def _splice(content: bytearray, others: Sequence[bytes], chance: random.Random) -> None:
    other = chance.choice(others)
    content[chance.randint(0, len(content)) :] = other[chance.randint(0, len(other)) :]


def _scramble(content: bytearray, _others: Sequence[bytes], chance: random.Random) -> None:
    start = chance.randint(0, len(content))
    content[start : start + 8] = chance.randbytes(8)


def _span(content: bytearray, chance: random.Random) -> tuple[int, int]:
    start = chance.randint(0, len(content))
    return start, min(len(content), start + chance.randint(1, 40))


_CHANGES: list[Callable[[bytearray, Sequence[bytes], random.Random], None]] = [
    _flip, _replace, _insert, _cut, _double, _truncate, _splice, _scramble,
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, -(2**63), 10**400, 0.0, -0.5, 1e-320, 1e308, "", "x", "1", "NaN", "../../x",
    "/elsewhere", "\x00", "\ud800", "\u2028", "9" * 5000, [], {}, [[]], [None], {"": None}, [1, "a", None],
    {"a": {"b": [1]}},
]  # fmt: skip


def misvalued(value: Any, chance: random.Random) -> Any:
    """A JSON value of the same outline in which some place holds something else, is gone, or is there twice."""
    if chance.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return chance.choice(VALUES)
    if isinstance(value, list):
        place = chance.randrange(len(value))
        changed = misvalued(value[place], chance)
        middle = chance.choice([[changed], [changed], [], [value[place], value[place]]])
        return [*value[:place], *middle, *value[place + 1 :]]
    name = chance.choice(sorted(value))
    kept = {key: entry for key, entry in value.items() if key != name}
    action = chance.random()
    if action < 0.15:
        return kept
    if action < 0.25:
        return {**kept, chance.choice([f"{name}x", "", "__class__", "../x"]): value[name]}
    return {**kept, name: misvalued(value[name], chance)}
