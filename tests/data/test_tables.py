from __future__ import annotations

import csv
import gzip
import json

import pytest

from helpers.memory_sets import GOOD, PAIRS, SECRET, jsonl, pairs, records, refused, table, write
from memlaw.core.facts import Fact
from memlaw.data import STRESS_PROMPT, read

SHAPES: dict[str, str | bytes] = {
    "completion.jsonl": jsonl(records()),
    "target.jsonl": jsonl(records("query", "target")),
    "matching.jsonl": jsonl(records("question", "matching")),
    "output.jsonl": jsonl([{**record, "input": ""} for record in records("instruction", "output")]),
    "escaped.jsonl": jsonl(records(), ensure_ascii=True),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(records()).encode(),
    "crlf.jsonl": jsonl(records()).replace("\n", "\r\n"),
    "no_last_line_end.jsonl": jsonl(records()).rstrip("\n"),
    "blank_lines.jsonl": "\n" + jsonl(records()).replace("\n", "\n\n"),
    "list.json": json.dumps(records()),
    "indented.json": json.dumps(records(), indent=2),
    "lines_named.json": jsonl(records()),
    "comma.csv": table(),
    "semicolon.csv": table(";"),
    "tab.tsv": table("\t"),
    "bom.csv": b"\xef\xbb\xbf" + table().encode(),
    "other_fields.csv": table(header=("query", "target")),
    "completion.jsonl.gz": gzip.compress(jsonl(records()).encode()),
    "comma.csv.gz": gzip.compress(table().encode()),
    "gzip_by_content": gzip.compress(jsonl(records()).encode()),
    "lines_by_content.txt": jsonl(records()),
    "list_by_content": json.dumps(records()),
    "table_by_content": table("\t"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_gives_the_same_facts(tmp_path, name):
    memory_set = read(write(tmp_path / name, SHAPES[name]))
    assert pairs(memory_set) == PAIRS
    assert memory_set.eos
    assert memory_set.warnings == ()


def test_one_object_in_a_json_file_is_one_record(tmp_path):
    path = write(tmp_path / "one.json", json.dumps(records()[0], indent=2))
    assert pairs(read(path)) == PAIRS[:1]


@pytest.mark.parametrize(
    "text", ["  First line.\r\nSecond\u2028line.\n\n", "[section]\nkey = 1\n", "{not json}", '"a"']
)
def test_a_plain_text_is_one_long_target_kept_to_the_last_character(tmp_path, text):
    memory_set = read(write(tmp_path / "notes.txt", text))
    assert memory_set.facts == (Fact(STRESS_PROMPT, text, "1", line=1),)
    assert not memory_set.eos
    assert "plain text" in memory_set.source


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"prompt": "a\u2028b\x85", "completion": "c\u2029d\x1ce"}]))
    assert pairs(read(path)) == [("a\u2028b\x85", "c\u2029d\x1ce")]


def test_a_record_of_a_table_is_numbered_by_the_line_it_starts_on(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt,completion\na,"1\n2"\n\nb,3\n')
    assert [(f.target, f.line) for f in read(path).facts] == [("1\n2", 2), ("3", 5)]


def with_target(value: str) -> str:
    return GOOD + '{"prompt": "q", "completion": ' + value + "}\n"


REFUSED: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty": ("a.jsonl", b"", ["is empty"]),
    "only a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf", ["is empty"]),
    "only white space": ("a.txt", " \n\t\u2028", ["is empty, so there is nothing to store"]),
    "empty list": ("a.json", "[]", ["holds no records", "read as JSON"]),
    "table without rows": ("a.csv", "prompt,completion\n", ["holds no records", "read as CSV"]),
    "not JSON": (
        "a.jsonl",
        GOOD + f"{{'prompt': '{SECRET}'}}\n",
        ["Line 2", "read as JSONL", "is not JSON", "column 2"],
    ),
    "cut short": ("a.jsonl", GOOD + '{"prompt": "a", "compl', ["Line 2", "is not JSON"]),
    "not an object": ("a.jsonl", GOOD + f'["{SECRET}"]\n', ["Line 2", "is a list, not an object"]),
    "a string": ("a.jsonl", f'"{SECRET}"\n', ["Line 1", "is a string, not an object"]),
    "list of numbers": ("a.json", "[1, 2]", ["Item 1", "is a number, not an object"]),
    "damaged list": ("a.json", '[\n{"prompt": "a"},\n{]', ["read as JSON", "is not JSON", "line 3, column 2"]),
    "unknown fields": ("a.jsonl", f'{{"ask": "a", "say": "{SECRET}"}}', ["Line 1", "'ask', 'say'", "query/target"]),
    "no fields": ("a.jsonl", "{}", ["Line 1", "has the fields (none)"]),
    "many fields": ("a.jsonl", json.dumps({f"f{n}": 1 for n in range(50)}), ["'f11', ..."]),
    "missing field": (
        "a.jsonl",
        GOOD + '{"prompt": "a", "text": "b"}',
        ["Line 2", "lacks the field 'completion'", "'text'"],
    ),
    "two shapes": (
        "a.jsonl",
        '{"prompt": "a", "completion": "b", "query": "c", "target": "d"}',
        ["prompt/completion or as query/target", "prompt_field"],
    ),
    "instruction with a history": (
        "a.jsonl",
        '{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}',
        ["Line 1", "'history' beside 'instruction'", "as 'messages'"],
    ),
    "instruction with an input that is no text": (
        "a.jsonl",
        '{"instruction": "a", "input": 7, "output": "c"}',
        ["Line 1", "'input' is a number"],
    ),
    "field twice": (
        "a.jsonl",
        GOOD + '{"prompt": "a", "completion": "b", "completion": "c"}',
        ["Line 2", "same field twice"],
    ),
    "number as target": ("a.jsonl", with_target("7"), ["Line 2", "'completion' is a number, not a string"]),
    "null as target": ("a.jsonl", with_target("null"), ["Line 2", "'completion' is null"]),
    "list as target": ("a.jsonl", with_target(f'["{SECRET}"]'), ["Line 2", "'completion' is a list"]),
    "empty target": ("a.jsonl", with_target('""'), ["Line 2", "'completion' is empty"]),
    "blank target": ("a.jsonl", with_target('" \\n"'), ["Line 2", "'completion' is empty"]),
    "empty prompt": ("a.jsonl", f'{{"prompt": "", "completion": "{SECRET}"}}', ["Line 1", "'prompt' is empty"]),
    "NaN": ("a.jsonl", with_target("NaN"), ["Line 2", "NaN", "JSON does not have"]),
    "infinity elsewhere": ("a.jsonl", '{"prompt": "a", "completion": "b", "w": -Infinity}', ["Line 1", "-Infinity"]),
    "NaN in a list": ("a.json", '[{"prompt": "a", "completion": NaN}]', ["read as JSON", "NaN"]),
    "endless number": ("a.jsonl", with_target("9" * 5000), ["Line 2", "is not JSON"]),
    "lone surrogate": (
        "a.jsonl",
        with_target(f'"{SECRET}\\ud83d"'),
        ["Line 2", "surrogate", f"character {len(SECRET)}"],
    ),
    "lone surrogate as id": (
        "a.jsonl",
        '{"id": "\\udc00", "prompt": "a", "completion": "b"}',
        ["Line 1", "'id'", "surrogate"],
    ),
    "id of a strange type": ("a.jsonl", '{"id": [1], "prompt": "a", "completion": "b"}', ["'id' is a list"]),
    "empty id": ("a.jsonl", '{"id": "", "prompt": "a", "completion": "b"}', ["'id' is empty"]),
    "true as id": ("a.jsonl", '{"id": true, "prompt": "a", "completion": "b"}', ["'id' is a boolean"]),
    "nesting over 64": ("a.jsonl", GOOD[:-2] + ', "x": ' + "[" * 64 + "]" * 64 + "}", ["Line 1", "more than 64 deep"]),
    "nesting beyond the parser": ("a.json", "[" * 200_000, ["more than 64 deep"]),
    "not UTF-8": (
        "a.jsonl",
        GOOD.encode() + b'{"prompt": "\xe9t\xe9", "completion": "b"}',
        ["not UTF-8", "byte 13 of line 2", f"offset {len(GOOD) + 12}"],
    ),
    "encoded surrogate": ("a.jsonl", b'{"prompt": "\xed\xa0\xbd"}', ["not UTF-8", "byte 13 of line 1"]),
    "UTF-16": ("a.jsonl", GOOD.encode("utf-16"), ["not UTF-8", "byte 1 of line 1"]),
    "table with too many cells": (
        "a.csv",
        f"prompt,completion\na,b\nc,{SECRET},e\n",
        ["Line 3", "has 3 cells", "header has 2"],
    ),
    "table without the fields": (
        "a.csv",
        f"ask,say\na,{SECRET}\n",
        ["Line 1", "must name the columns", "2 cells", "query/target"],
    ),
    "table without a header": ("a.csv", f"Ada:,{SECRET}\nBob:,{SECRET}\n", ["Line 1", "must name the columns"]),
    "table with an open quote": ("a.csv", f'prompt,completion\na,b\nc,"{SECRET}\n', ["Line 3", "cannot be parsed"]),
    "table with a column twice": ("a.csv", "prompt,completion,prompt\na,b,c\n", ["names a column twice"]),
    "empty cell": ("a.tsv", f"prompt\tcompletion\n\t{SECRET}\n", ["Line 2", "'prompt' is empty"]),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(GOOD.encode() * 99)[:-9], ["damaged gzip"]),
    "gzip in gzip": ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD.encode())), ["not UTF-8"]),
    "gzip of nothing": ("a.jsonl.gz", gzip.compress(b""), ["is empty"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_place_and_reason(tmp_path, case):
    name, content, fragments = REFUSED[case]
    message = refused(write(tmp_path / name, content))
    assert name in message
    for fragment in fragments:
        assert fragment in message


def test_nesting_of_exactly_64_is_read(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD[:-2] + ', "x": ' + "[" * 63 + "]" * 63 + "}")
    assert pairs(read(path)) == [("a", "b")]


def test_a_line_over_16_megabytes_is_refused_with_its_number_and_size(tmp_path):
    long = '{"prompt": "a", "completion": "' + "x" * (16 << 20) + '"}\n'
    message = refused(write(tmp_path / "a.jsonl", GOOD + long))
    assert "Line 2" in message
    assert f"has {len(long)} bytes" in message
    assert "16 MB" in message


def test_long_files_of_short_lines_and_long_cells_are_read(tmp_path):
    """The csv module alone stops at 128 KB per cell; its limit, which is global, is restored."""
    csv.field_size_limit(131_072)
    cell = "x" * 300_000
    rows = "".join(f"{number},{cell}\n" for number in range(60))
    memory_set = read(write(tmp_path / "a.csv", "prompt,completion\n" + rows))
    assert [len(fact.target) for fact in memory_set.facts] == [len(cell)] * 60
    assert csv.field_size_limit() == 131_072
