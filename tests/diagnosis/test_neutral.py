"""Neutral text: the user's, or the base's own and a page of prose."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random

import pytest
import torch

from helpers import tiny
from helpers.memory_sets import WITH_BOS
from memlaw.core.errors import DataError
from memlaw.core.facts import Fact, MemorySet
from memlaw.diagnosis.neutral import WINDOWS, file_text, neutral_texts
from memlaw.model.base import Base, wrap
from memlaw.model.sampling import EVALUATION_SEED, sampled

FACTS = MemorySet((Fact("Door A:", " 4917#", "door-a"), Fact("Door B:", " 7", "door-b")), eos=True, source="doors")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "neutral.txt"
    path.write_text(text)
    return path


def words(count: int) -> str:
    """`count` characters, each a token of the tiny tokenizer."""
    return "".join(Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=count))


def with_bos() -> Base:
    return wrap(tiny.model(vocab_size=len(WITH_BOS)), WITH_BOS, name="with bos")


def test_by_default_it_is_sampled_from_the_base_and_a_page_of_prose() -> None:
    base = tiny.base()
    texts = {text.name: text.rows for text in neutral_texts(base)}
    assert list(texts) == ["sampled", "prose"]
    assert torch.equal(texts["sampled"], sampled(base, 32, 64, seed=EVALUATION_SEED))
    assert base.tokenizer.decode(texts["prose"][0]).startswith("There were four of us")
    assert texts["prose"].shape == (WINDOWS, 127)  # the context is 128


def test_a_base_that_cannot_sample_gets_the_prose_alone() -> None:
    base = tiny.base()
    base.tokenizer.bos_token = base.tokenizer.eos_token = None
    base.model.generation_config.eos_token_id = None
    assert [text.name for text in neutral_texts(base)] == ["prose"]


def test_a_file_is_read_in_windows_one_after_another(tmp_path: Path) -> None:
    base = wrap(tiny.model(max_position_embeddings=512), tiny.tokenizer(), name="longer")
    text = words(3 * 256 + 100)
    rows = file_text(base, written(tmp_path, text)).rows
    assert rows.shape == (3, 256)
    assert "".join(base.tokenizer.decode(row) for row in rows) == text[: 3 * 256]


def test_a_long_file_is_read_in_windows_spread_over_it(tmp_path: Path) -> None:
    base = tiny.base()
    text = words(127 * 100)
    rows = file_text(base, written(tmp_path, text)).rows
    starts = [text.index(base.tokenizer.decode(row)) for row in rows]
    assert starts == sorted(starts)
    assert len(rows) == WINDOWS
    assert starts[0] == 0
    assert starts[-1] > len(text) * 0.8


def test_each_window_begins_as_the_tokenizer_begins(tmp_path: Path) -> None:
    base = with_bos()
    rows = file_text(base, written(tmp_path, words(900))).rows
    assert (rows[:, 0] == WITH_BOS.bos_token_id).all()
    assert rows.shape[1] == 128


@pytest.mark.parametrize("text", ["", " \n", words(126)])
def test_a_file_shorter_than_a_window_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="neutral text .* (is empty|has 126 tokens)"):
        file_text(tiny.base(), written(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.txt"):
        file_text(tiny.base(), tmp_path / "nowhere.txt")


def test_a_file_that_holds_a_target_warns_without_showing_it(tmp_path: Path) -> None:
    path = written(tmp_path, words(300) + " code 4917# and 7 " + words(100))
    with pytest.warns(UserWarning, match=r"holds the targets of 1 facts \(first 'door-a'\)") as caught:
        neutral_texts(tiny.base(), path, FACTS)
    assert "4917" not in str(caught[0].message)


def test_a_file_without_targets_does_not(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neutral_texts(tiny.base(), written(tmp_path, words(300) + " 7 "), FACTS)
