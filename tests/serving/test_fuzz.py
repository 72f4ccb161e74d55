"""Replies that no documentation describes end in a ServerError or in a verdict that claims no more than was said."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memlaw
from helpers import tiny
from helpers.serving import FACTS, KINDS, Running, Start
from memlaw.core.errors import MemlawError
from memlaw.core.facts import MemorySet
from memlaw.serving.settings import VerifyConfig

ONE = MemorySet(FACTS.facts[:1], eos=True, source="one")

JUNK: list[Any] = [
    *(None, True, -1, 0, 1, 2**70, 1e308, -1e308, "", "token_id:", "token_id:99999999999999999999", "\x00", "hunter"),
    *([], {}, [[]], [None], {"a": []}, [["x", "y", "z"]]),
]


def mutated(value: Any, draw: random.Random) -> Any:
    """`value` with one of its parts replaced, removed or repeated."""
    spoiled = copy.deepcopy(value)
    parts = list(_parts(spoiled))
    if not parts:
        return draw.choice(JUNK)
    holder, key = draw.choice(parts)
    change = draw.randrange(4)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key] = draw.choice(JUNK)
    return spoiled


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _parts(value[key])


@pytest.fixture(scope="module", params=list(KINDS))
def running(start: Start, request: pytest.FixtureRequest) -> Iterator[tuple[str, Running]]:
    with start(request.param) as server:
        yield request.param, server


@given(seed=st.integers(0, 2**32), cut=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_reply_ends_in_anything_but_a_verdict_or_memlaws_own_error(
    running: tuple[str, Running], seed: int, cut: bool
) -> None:
    kind, server = running
    draw = random.Random(seed)

    def spoil(_path: str, content: bytes) -> bytes:
        if draw.random() < 0.6:
            return content
        spoiled = json.dumps(mutated(json.loads(content), draw)).encode()
        return spoiled[: draw.randrange(len(spoiled))] if cut and draw.random() < 0.3 else spoiled

    server.spoil = spoil
    config = VerifyConfig(dialect=kind, adapter_name="facts", retries=0, concurrency=1, timeout=20.0)
    with suppress(MemlawError):
        verified = memlaw.verify(server.url, ONE, tiny.tokenizer(), config=config)
        (item,) = verified.report.items
        assert not item.certified or not verified.unknown
