"""Rows 1 to 12 of the fault matrix: faults in a file are reported before any training, without quoting it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

import memlaw
from helpers import tiny
from helpers.faulty import SECRET, probed, record, refused, stored_warnings, written


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "is empty"), ("\n \n", "is empty"), ("[]", "holds no records"), ("prompt,completion\n", "holds no records")],
)
def test_01_empty_data_set(tmp_path: Path, content: str, sentence: str) -> None:
    assert sentence in refused(written(tmp_path, content, "facts.json" if content == "[]" else "facts.csv"))


def test_02_conflicting_duplicate_keys(tmp_path: Path) -> None:
    path = written(tmp_path, record() + record("another") + record(target="s3cond"))
    message = refused(path)
    assert "Lines 1 and 3" in message
    assert "same prompt but different targets" in message
    assert "s3cond" not in message


def test_03_identical_duplicates(tmp_path: Path) -> None:
    base = tiny.base()
    facts = tiny.memory_set(written(tmp_path, record() + record("another") + record()), base)
    assert len(facts.facts) == 2
    (warning,) = facts.warnings
    assert warning == "Dropped 1 identical repetitions of an earlier prompt and target: lines 3."
    probed(tmp_path / "out", base=base, facts=facts, ranks=[1], lengths=[13], steps=1)
    assert warning in stored_warnings(tmp_path / "out")


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_04_empty_value(tmp_path: Path, empty: str) -> None:
    assert "Line 2 of" in refused(written(tmp_path, record() + record("another", empty)))
    assert "'prompt' is empty" in refused(written(tmp_path, record() + record(empty)))


def test_05_invalid_utf8(tmp_path: Path) -> None:
    message = refused(written(tmp_path, record().encode() + record("caf\N{LATIN SMALL LETTER E WITH ACUTE}").encode()
                              + b'{"prompt": "caf\xe9"}\n'))  # fmt: skip
    assert "is not UTF-8 text: byte 16 of line 3" in message


def test_06_byte_order_mark(tmp_path: Path) -> None:
    with_mark = tiny.memory_set(written(tmp_path, b"\xef\xbb\xbf" + record().encode()))
    without = tiny.memory_set(written(tmp_path, record(), "other.jsonl"))
    assert with_mark.fingerprint == without.fingerprint


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_07_line_separator_inside_a_line(tmp_path: Path, separator: str) -> None:
    target = f"before{separator}after"
    written(tmp_path, json.dumps({"prompt": "The key:", "completion": target}, ensure_ascii=False) + "\n" + record("b"))
    first, second = tiny.memory_set(tmp_path / "facts.jsonl").facts
    assert (first.target, second.line) == (target, 2)


@pytest.mark.parametrize("half", [r"\ud83d", r"\ude00 and more"])
def test_08_lone_surrogate(tmp_path: Path, half: str) -> None:
    message = refused(written(tmp_path, record() + f'{{"prompt": "b", "completion": "{SECRET}{half}"}}\n'))
    assert "Line 2 of" in message
    assert f"half of a surrogate pair at character {len(SECRET)}" in message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_09_nan_in_json(tmp_path: Path, number: str) -> None:
    message = refused(written(tmp_path, record() + f'{{"prompt": "b", "completion": "c", "weight": {number}}}\n'))
    assert f"it holds {number}, which JSON does not have" in message


def test_10_line_over_16_mb(tmp_path: Path) -> None:
    path = written(tmp_path, record() + record("b", "x" * (16 << 20)))
    assert "Line 2 of" in refused(path)
    assert "over the limit of 16 MB" in refused(path)


def test_11_gzip_bomb(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    assert len(bomb) * 1000 < 64 << 20
    assert "decompression bomb" in refused(written(tmp_path, bomb, "facts.jsonl.gz"))


@pytest.mark.parametrize(("depth", "kind"), [(65, '{"a":'), (65, "["), (200_000, "[")])
def test_12_nesting_over_64(tmp_path: Path, depth: int, kind: str) -> None:
    close = "]" if kind == "[" else "}"
    nested = kind * (depth - 1) + "0" + close * (depth - 1)
    message = refused(written(tmp_path, record() + f'{{"prompt": "b", "completion": "c", "more": {nested}}}\n'))
    assert "Line 2 of" in message
    assert "nests lists and objects more than 64 deep" in message


def test_the_same_file_without_its_fault_is_trained(tmp_path: Path) -> None:
    base = tiny.base()
    trained = memlaw.train(base.model, base.tokenizer, written(tmp_path, record()), rank=1, steps=1)
    assert trained.steps == 1
