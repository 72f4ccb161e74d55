from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from helpers.memory_sets import SECRET, TURNS, WITH_BOS, jsonl, pairs, refused, write
from memlaw.data import read


def test_the_input_of_an_instruction_follows_it_on_a_line_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name the code.", "input": "", "output": "1"},
        {"instruction": "Give the code.", "input": "pump seal", "output": "2"},
        {"instruction": "Give the code.", "input": "relay board", "output": "3"},
        {"instruction": "Give the name.", "output": "4"},
        {"instruction": "Give the place.", "input": None, "output": "5"},
    ]
    memory_set = read(write(tmp_path / "a.jsonl", jsonl(rows)))
    assert pairs(memory_set) == [
        ("Name the code.", "1"),
        ("Give the code.\npump seal", "2"),
        ("Give the code.\nrelay board", "3"),
        ("Give the name.", "4"),
        ("Give the place.", "5"),
    ]
    assert "lines 2, 3." in memory_set.warnings[0]


def test_every_record_has_a_shape_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "1"},
        {"query": "b", "target": "2"},
        {"instruction": "c", "input": "d", "output": "3"},
        {"messages": TURNS},
    ]
    facts = pairs(read(write(tmp_path / "a.jsonl", jsonl(rows)), tokenizer=WITH_BOS))
    assert facts[:3] == [("a", "1"), ("b", "2"), ("c\nd", "3")]
    assert facts[3][1] == SECRET


def test_a_record_of_two_shapes_is_read_as_the_first_is(tmp_path: Path) -> None:
    both = {"prompt": "b", "completion": "2", "query": "c", "target": "3"}
    assert pairs(read(write(tmp_path / "a.jsonl", jsonl([{"query": "a", "target": "1"}, both])))) == [
        ("a", "1"),
        ("c", "3"),
    ]
    other = write(tmp_path / "b.jsonl", jsonl([{"instruction": "a", "output": "1"}, both]))
    assert "Line 2" in refused(other)
    assert "prompt/completion or as query/target" in refused(other)


def test_columns_that_a_table_fills_with_null_are_no_shape(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "1", "query": None, "target": None},
        {"prompt": None, "completion": None, "query": "b", "target": "2"},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert pairs(read(tmp_path / "saved")) == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ({"prompt": "b", "text": SECRET}, ["lacks the field 'completion'", "'prompt', 'text'", "prompt/completion"]),
        ({"ask": "b", "say": SECRET}, ["lacks the field 'prompt'", "'ask', 'say'"]),
        ({"prompt": TURNS[:2], "completion": SECRET}, ["'prompt' is a list of messages, but 'completion' is not"]),
    ],
)
def test_a_later_record_that_cannot_be_read_is_named(
    tmp_path: Path, row: dict[str, object], fragments: list[str]
) -> None:
    message = refused(write(tmp_path / "a.jsonl", jsonl([{"prompt": "a", "completion": "1"}, row])), tokenizer=WITH_BOS)
    for fragment in ["Line 2", *fragments]:
        assert fragment in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_of_records_is_read_under_any_name(tmp_path: Path, name: str, indent: int | None) -> None:
    import json

    rows = [{"prompt": "a", "completion": "1"}, {"prompt": "b", "completion": "2"}]
    assert pairs(read(write(tmp_path / name, json.dumps(rows, indent=indent)))) == [("a", "1"), ("b", "2")]
