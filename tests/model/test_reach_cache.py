"""A search over a head is done once, and nothing that happens to its file changes what is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny
from memlaw.core.cache import VARIABLE
from memlaw.model.head import FrozenHead, frozen_head
from memlaw.model.reach import reachable_tokens
from memlaw.model.reach_cache import cached_ids

TOKENS = list(range(3, 60))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "reach"


@pytest.fixture(scope="module")
def head() -> FrozenHead:
    return frozen_head(tiny.model())


class Counted:
    """The search itself, and how often it was done."""

    def __init__(self, head: FrozenHead, above: float = 0.9):
        self.head, self.above, self.times = head, above, 0

    def search(self) -> list[int]:
        self.times += 1
        return reachable_tokens(self.head, above=self.above, tokens=TOKENS).tolist()

    def ask(self) -> list[int]:
        return cached_ids(self.head, TOKENS, self.above, self.search)


def test_the_second_time_the_answer_comes_from_the_file(cache: Path, head: FrozenHead) -> None:
    counted = Counted(head)
    first = counted.ask()
    assert first == counted.search()
    assert counted.ask() == first
    assert counted.times == 2
    assert len(list(cache.iterdir())) == 1


def test_another_head_or_question_is_another_file(cache: Path, head: FrozenHead) -> None:
    moved = head.weight.clone()
    moved[7, 3] += 1e-3
    heads = [head, replace(head, weight=moved), replace(head, scale=2.0), replace(head, softcap=30.0)]
    heads.append(replace(head, bias=torch.zeros(len(head.weight))))
    for place, other in enumerate(heads, start=1):
        Counted(other).ask()
        assert len(list(cache.iterdir())) == place
    Counted(head, above=0.5).ask()
    assert len(list(cache.iterdir())) == len(heads) + 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"ids": [3], "sha256": "0"}', b"\xff\xfe"])
def test_a_damaged_file_is_searched_again_and_replaced(cache: Path, head: FrozenHead, damage: bytes) -> None:
    expected = Counted(head).ask()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert Counted(head).ask() == expected
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_only_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: FrozenHead
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    counted = Counted(head)
    assert counted.ask() == counted.ask() == counted.search()
    assert counted.times == 3
