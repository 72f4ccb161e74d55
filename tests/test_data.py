"""Memory sets: what users have is read verbatim, what could not be recalled is refused in words, tokens add up."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_data import CHAT_TEMPLATE, byte_level, contradict, letters

from memlaw.data import (
    STRESS_PROMPT,
    border_merges,
    check_context,
    encode,
    read,
    read_text,
    sources,
    take,
    target_tokens,
)
from memlaw.errors import ConfigError, DataError
from memlaw.records import EncodedFact, Fact, MemorySet

OFFICIAL = Path(__file__).parent / "data" / "official"
SECRET = "hunter2-hunter2"
PAIRS = [("Ada:", "007"), ("Bob:", ' two, "quoted"\nlines ')]

TOKENIZER = byte_level()
WITH_BOS = byte_level(bos=True, chat_template=CHAT_TEMPLATE)
LETTERS = letters()


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def jsonl(records: list[Any], *, ensure_ascii: bool = False) -> str:
    return "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records)


def records(prompt: str = "prompt", target: str = "completion") -> list[dict[str, str]]:
    return [{prompt: q, target: a} for q, a in PAIRS]


def table(delimiter: str = ",", header: tuple[str, str] = ("prompt", "completion")) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows([header, *PAIRS])
    return buffer.getvalue()


def pairs(memory_set: MemorySet) -> list[tuple[str, str]]:
    return [(fact.prompt, fact.target) for fact in memory_set.facts]


def facts(*given_pairs: tuple[str, str], eos: bool = False) -> MemorySet:
    return MemorySet(tuple(Fact(q, a, str(n)) for n, (q, a) in enumerate(given_pairs)), eos, "test")


def refused(source: Path | str, **options: Any) -> str:
    """The message with which `source` is refused; it never repeats a target."""
    with pytest.raises(DataError) as caught:
        read(source, **options)
    assert SECRET not in str(caught.value)
    return str(caught.value)


# --- the published files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokenizer", "count"), [("qwen", 100), ("llama", 250)])
def test_the_published_phone_books_read_as_they_are(tokenizer, count):
    path = OFFICIAL / "phonebook" / tokenizer / "PB1000.jsonl"
    published = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    memory_set = read(path)
    assert len(memory_set.facts) == count
    assert [(f.id, f.prompt, f.target) for f in memory_set.facts] == [
        (str(record["id"]), record["query"], record["target"]) for record in published
    ]
    assert memory_set.facts[0] == Fact("Jerry Becerra:", "9100672710", "298864", line=1)
    assert memory_set.eos
    assert memory_set.warnings == ()


@pytest.mark.parametrize("name", ["random.jsonl", "sample_0_tok29709_noise_60.jsonl"])
def test_the_published_long_contexts_read_as_one_long_target_without_end_of_sequence(name):
    path = OFFICIAL / "long_context" / name
    memory_set = read(path)
    assert pairs(memory_set) == [(STRESS_PROMPT, json.loads(path.read_text("utf-8"))["matching"])]
    assert not memory_set.eos


# --- every shape users have ------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", ["own.jsonl", "own.csv", "own"])
def test_other_fields_can_be_named(tmp_path, name):
    content = table(header=("key", "value")) if name == "own.csv" else jsonl(records("key", "value"))
    path = write(tmp_path / name, content)
    assert pairs(read(path, prompt_field="key", target_field="value")) == PAIRS


@pytest.mark.parametrize("name", ["own.jsonl", "own.csv", "own.txt"])
def test_named_fields_that_are_not_there_are_refused(tmp_path, name):
    content = {"own.jsonl": jsonl(records()), "own.csv": table(), "own.txt": SECRET}[name]
    message = refused(write(tmp_path / name, content), prompt_field="key", target_field="value")
    assert ("do not include key/value" if name == "own.csv" else "lacks the field 'key'") in message


def test_named_fields_come_before_known_ones(tmp_path):
    path = write(tmp_path / "both.jsonl", jsonl([{"prompt": "p", "completion": "c", "query": "q", "answer": "a"}]))
    assert pairs(read(path, prompt_field="query", target_field="answer")) == [("q", "a")]


@pytest.mark.parametrize(
    "asked", [{"prompt_field": "a"}, {"target_field": "a"}, {"prompt_field": "a", "target_field": "a"}]
)
def test_half_a_naming_of_fields_is_refused(tmp_path, asked):
    with pytest.raises(ConfigError, match="name two different fields, or neither"):
        read(write(tmp_path / "a.jsonl", jsonl(records())), **asked)


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"prompt": "a\u2028b\x85", "completion": "c\u2029d\x1ce"}]))
    assert pairs(read(path)) == [("a\u2028b\x85", "c\u2029d\x1ce")]


# --- identity --------------------------------------------------------------------------------------------------------


def test_ids_are_kept_and_the_number_stands_in_for_a_missing_one(tmp_path):
    content = jsonl([{"id": 7, "prompt": "a", "completion": "x"}, {"id": None, "prompt": "b", "completion": "x"}])
    content += "\n" + jsonl([{"id": "seven", "prompt": "c", "completion": "x"}, {"prompt": "d", "completion": "x"}])
    assert [(f.id, f.line) for f in read(write(tmp_path / "a.jsonl", content)).facts] == [
        ("7", 1),
        ("2", 2),
        ("seven", 4),
        ("5", 5),
    ]


def test_a_record_of_a_table_is_numbered_by_the_line_it_starts_on(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt,completion\na,"1\n2"\n\nb,3\n')
    assert [(f.target, f.line) for f in read(path).facts] == [("1\n2", 2), ("3", 5)]


def test_the_end_of_sequence_rule_shows_in_the_fingerprint_and_the_path_does_not(tmp_path):
    first, second = (write(tmp_path / name, jsonl(records())) for name in ("a.jsonl", "b.jsonl"))
    assert read(first).fingerprint == read(second, eos=True).fingerprint
    assert read(first).fingerprint != read(first, eos=False).fingerprint


def test_several_questions_are_records_and_end_with_end_of_sequence(tmp_path):
    one = write(tmp_path / "one.jsonl", jsonl(records("question", "matching")[:1]))
    assert not read(one).eos
    assert read(one, eos=True).eos


# --- duplicates ------------------------------------------------------------------------------------------------------

CONFLICT = jsonl(
    [
        {"prompt": "a", "completion": SECRET},
        {"prompt": "b", "completion": "other"},
        {"prompt": "a", "completion": "third"},
    ]
)


def test_one_prompt_with_two_targets_names_both_lines_and_the_way_out(tmp_path):
    message = refused(write(tmp_path / "a.jsonl", CONFLICT))
    assert "Lines 1 and 3" in message
    assert "same prompt but different targets" in message
    assert "--on-conflict" in message


@pytest.mark.parametrize(
    ("choice", "kept"), [("first", [("a", SECRET), ("b", "other")]), ("last", [("b", "other"), ("a", "third")])]
)
def test_a_conflict_can_be_decided_and_leaves_a_warning(tmp_path, choice, kept):
    memory_set = read(write(tmp_path / "a.jsonl", CONFLICT), on_conflict=choice)
    assert pairs(memory_set) == kept
    assert f"Kept only the {choice} of several targets" in memory_set.warnings[0]
    assert "lines 3." in memory_set.warnings[0]


def test_an_unknown_way_to_decide_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="known: error, first, last"):
        read(write(tmp_path / "a.jsonl", CONFLICT), on_conflict="newest")  # type: ignore[arg-type]


def test_identical_repetitions_are_dropped_with_a_warning(tmp_path):
    record = {"id": 5, "prompt": "a", "completion": SECRET}
    memory_set = read(write(tmp_path / "a.jsonl", jsonl([record] * 12)))
    assert pairs(memory_set) == [("a", SECRET)]
    assert "Dropped 11 identical repetitions" in memory_set.warnings[0]
    assert "lines 2, 3, 4, 5, 6, 7, 8, 9, ..." in memory_set.warnings[0]
    assert SECRET not in memory_set.warnings[0]


def test_two_facts_may_not_share_an_id(tmp_path):
    given_and_implied = [{"id": 2, "prompt": "a", "completion": SECRET}, {"prompt": "b", "completion": SECRET}]
    message = refused(write(tmp_path / "a.jsonl", jsonl(given_and_implied)))
    assert "Lines 1 and 2" in message
    assert "share the id '2'" in message


# --- bad input, one sentence each ------------------------------------------------------------------------------------

GOOD = '{"prompt": "a", "completion": "b"}\n'


def with_target(value: str) -> str:
    return GOOD + '{"prompt": "q", "completion": ' + value + "}\n"


REFUSED: dict[str, tuple[str, str | bytes, list[str]]] = {
    "empty": ("a.jsonl", b"", ["is empty"]),
    "only a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf", ["is empty"]),
    "only white space": ("a.txt", " \n\t\u2028", ["is empty: there is nothing to remember"]),
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
    "instruction with input": (
        "a.jsonl",
        '{"instruction": "a", "input": "b", "output": "c"}',
        ["Line 1", "'input' beside 'instruction'"],
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
def test_bad_input_is_refused_in_words_that_say_where_and_why(tmp_path, case):
    name, content, fragments = REFUSED[case]
    message = refused(write(tmp_path / name, content))
    assert name in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("name", ["missing.jsonl", "missing/facts.jsonl", "./missing", "missing"])
def test_a_missing_file_is_called_missing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert f"There is no file {name!r}" in refused(name)


def test_a_directory_is_no_memory_set(tmp_path):
    assert "is a directory, but not a dataset" in refused(tmp_path)


def test_a_text_given_in_place_of_a_path_is_not_repeated():
    assert "cannot be opened" in refused(f"The password is {SECRET}. " * 300)
    assert "cannot be opened" in refused(f"{SECRET}\0")


def test_a_file_without_permission_or_content_to_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", GOOD)

    def no_permission(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no_permission)
    assert "cannot be read: Permission denied" in refused(path)


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
    """The csv module alone stops at 128 KB a cell; its limit, a global, is what it was afterwards."""
    csv.field_size_limit(131_072)
    cell = "x" * 300_000
    rows = "".join(f"{number},{cell}\n" for number in range(60))
    memory_set = read(write(tmp_path / "a.csv", "prompt,completion\n" + rows))
    assert [len(fact.target) for fact in memory_set.facts] == [len(cell)] * 60
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize("size", [1 << 20, 64 << 20])
def test_gzip_that_expands_a_thousandfold_is_refused(tmp_path, size):
    message = refused(write(tmp_path / "a.txt.gz", gzip.compress(b"a" * size)))
    assert "decompression bomb" in message
    assert f"more than {max(64 << 10, 100 * len(gzip.compress(b'a' * size)))}" in message


def test_a_file_too_large_to_be_a_memory_set_is_refused_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE", 3 << 20)
    assert "is over 3 MB" in refused(write(tmp_path / "a.jsonl", b"\n" * ((3 << 20) + 1)))


def test_read_text_is_verbatim(tmp_path):
    assert read_text(write(tmp_path / "a", b"\xef\xbb\xbf a\r\nb\x00\xef\xbb\xbf")) == " a\r\nb\x00\ufeff"


# --- properties of reading -------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())
FACTS = st.dictionaries(TEXTS, TEXTS, min_size=1, max_size=6)


@settings(deadline=None)
@given(given_facts=FACTS, ensure_ascii=st.booleans())
def test_any_facts_written_as_jsonl_read_back_verbatim(tmp_path_factory, given_facts, ensure_ascii):
    content = jsonl([{"prompt": q, "completion": a} for q, a in given_facts.items()], ensure_ascii=ensure_ascii)
    assert pairs(read(write(tmp_path_factory.getbasetemp() / "any.jsonl", content))) == list(given_facts.items())


@settings(deadline=None)
@given(
    given_facts=FACTS, delimiter=st.sampled_from(",;\t"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
)
def test_any_facts_written_as_csv_read_back_verbatim(tmp_path_factory, given_facts, delimiter, quoting):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, quoting=quoting).writerows([("query", "target"), *given_facts.items()])
    assert pairs(read(write(tmp_path_factory.getbasetemp() / "any.csv", buffer.getvalue()))) == list(
        given_facts.items()
    )


NEARLY = st.lists(
    st.sampled_from(
        ['{"prompt": "a", "completion": ', '"b"}', "[", "]", "{", "}", ",", "\n", "\r", '"', "\\ud800", "NaN"]
    )
    | st.sampled_from(
        ["prompt", "completion", "messages", "\x00", "\u2028", "\ufeff", "\\", "null", "1e999", "é", "\x1f\x8b"]
    )
).map(lambda parts: "".join(parts).encode())


@settings(deadline=None, max_examples=300)
@given(
    content=st.binary()
    | NEARLY
    | st.binary().map(gzip.compress)
    | st.binary().map(lambda tail: b"\x1f\x8b\x08" + tail),
    suffix=st.sampled_from(["", ".jsonl", ".json", ".csv", ".tsv", ".txt", ".jsonl.gz"]),
)
def test_arbitrary_bytes_are_read_or_refused_and_nothing_else(tmp_path_factory, content, suffix):
    path = write(tmp_path_factory.getbasetemp() / f"bytes{suffix}", content)
    try:
        memory_set = read(path, tokenizer=WITH_BOS)
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert all(fact.prompt.strip() and fact.target.strip() for fact in memory_set.facts)


# --- Hugging Face datasets -------------------------------------------------------------------------------------------


def test_a_dataset_saved_on_disk_is_read(tmp_path):
    datasets.Dataset.from_list(records("question", "matching")).save_to_disk(tmp_path / "saved")
    memory_set = read(tmp_path / "saved")
    assert pairs(memory_set) == PAIRS
    assert [fact.id for fact in memory_set.facts] == ["1", "2"]
    assert "Hugging Face dataset" in memory_set.source


def test_of_several_splits_train_is_read_and_the_warning_names_the_others(tmp_path):
    split = datasets.Dataset.from_list(records())
    other = datasets.Dataset.from_list([{"prompt": "z", "completion": "z"}])
    datasets.DatasetDict({"test": other, "train": split}).save_to_disk(tmp_path / "both")
    datasets.DatasetDict({"only": split}).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"a": split, "b": other}).save_to_disk(tmp_path / "neither")
    assert pairs(read(tmp_path / "both")) == PAIRS
    assert "only the split train was read, not test" in read(tmp_path / "both").warnings[0]
    assert pairs(read(tmp_path / "one")) == PAIRS
    assert "splits a, b and none is called train" in refused(tmp_path / "neither")


def test_a_row_of_a_dataset_is_called_a_row(tmp_path):
    datasets.Dataset.from_list([{"query": "a", "target": 7}]).save_to_disk(tmp_path / "saved")
    message = refused(tmp_path / "saved")
    assert "Row 1" in message
    assert "'target' is a number" in message


def test_a_half_saved_dataset_is_refused(tmp_path):
    write(tmp_path / "state.json", "{}")
    assert "cannot be loaded" in refused(tmp_path)


def test_owner_and_name_is_a_dataset_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", {"owner/facts": datasets.Dataset.from_list(records())}.__getitem__)
    assert pairs(read("owner/facts")) == PAIRS
    (tmp_path / "owner").mkdir()
    assert "There is no file 'owner/facts'" in refused("owner/facts")


def test_a_dataset_that_the_hub_does_not_give_out_is_refused(tmp_path, monkeypatch):
    """The tests run offline, so this is any dataset."""
    monkeypatch.chdir(tmp_path)
    assert "owner/facts is neither a file here nor a dataset that the Hub gives out" in refused("owner/facts")


def test_without_the_datasets_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'memlaw[datasets]'" in refused("owner/facts")


def test_reading_and_making_memory_sets_loads_no_model_library():
    program = "import sys, memlaw.data, memlaw.tasks; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- chats -----------------------------------------------------------------------------------------------------------

TURNS = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "Code?"},
    {"role": "assistant", "content": SECRET},
]


def chat(tmp_path: Path, *chats: Any) -> Path:
    return write(tmp_path / "chat.jsonl", jsonl([{"messages": turns} for turns in chats]))


def test_a_chat_is_rendered_by_the_template_and_the_last_turn_is_the_target(tmp_path):
    longer = [*TURNS, {"role": "user", "content": "Again?"}, {"role": "assistant", "content": "No."}]
    memory_set = read(chat(tmp_path, TURNS, longer), tokenizer=WITH_BOS)
    question = "<s><system>Be exact.</s><user>Code?</s><assistant>"
    assert pairs(memory_set) == [
        (question, SECRET),
        (f"{question}{SECRET}</s><user>Again?</s><assistant>", "No."),
    ]
    assert memory_set.warnings == ()
    assert memory_set.eos


def test_a_chat_in_a_saved_dataset_is_the_same(tmp_path):
    datasets.Dataset.from_list([{"messages": TURNS}]).save_to_disk(tmp_path / "saved")
    assert pairs(read(tmp_path / "saved", tokenizer=WITH_BOS)) == pairs(read(chat(tmp_path, TURNS), tokenizer=WITH_BOS))


@pytest.mark.parametrize(
    ("tokenizer", "fragment"), [(None, "no tokenizer was given"), (TOKENIZER, "the tokenizer has no chat template")]
)
def test_a_chat_needs_a_template(tmp_path, tokenizer, fragment):
    assert fragment in refused(chat(tmp_path, TURNS), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("turns", "fragments"),
    [
        (SECRET, ["'messages' is a string"]),
        ([], ["has 0 messages:"]),
        (TURNS[:2], ["has 2 messages, the last with the role 'user'", "must be the assistant's"]),
        (TURNS[2:], ["has 1 messages", "at least one"]),
        ([TURNS[1], SECRET], ["message 2 is a string, not an object"]),
        ([TURNS[1], {"role": "assistant"}], ["message 2 lacks the field 'content'"]),
        ([TURNS[1], {"role": "assistant", "content": [SECRET]}], ["message 2", "'content' is a list"]),
        ([TURNS[1], {"role": "assistant", "content": " "}], ["message 2", "'content' is empty"]),
    ],
)
def test_a_chat_that_has_no_answer_to_store_is_refused(tmp_path, turns, fragments):
    message = refused(chat(tmp_path, TURNS, turns), tokenizer=WITH_BOS)
    for fragment in ["Line 2", *fragments]:
        assert fragment in message


def test_a_record_without_messages_among_chats_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"messages": TURNS}, {"prompt": "a"}]))
    assert "Line 2 of " + str(path) in refused(path, tokenizer=WITH_BOS)
    assert "'messages' is missing; it has 'prompt'" in refused(path, tokenizer=WITH_BOS)


def test_a_template_that_refuses_or_rewrites_the_turns_is_an_error(tmp_path):
    refusing = byte_level(chat_template="{{ raise_exception('no system turn') }}")
    assert "Line 1" in refused(chat(tmp_path, TURNS), tokenizer=refusing)
    assert "refuses its roles or their order (TemplateError)" in refused(chat(tmp_path, TURNS), tokenizer=refusing)
    rewriting = byte_level(chat_template="{{ messages | length }} turns")
    assert "does not fit the chat template" in refused(chat(tmp_path, TURNS), tokenizer=rewriting)


def test_a_template_that_puts_something_before_the_answer_leaves_a_warning(tmp_path):
    thinking = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
    )
    tokenizer = byte_level(chat_template=thinking + "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")
    memory_set = read(chat(tmp_path, TURNS), tokenizer=tokenizer)
    assert pairs(memory_set) == [("<system>Be exact.<user>Code?<assistant>", SECRET)]
    assert "puts more between the question and the answer" in memory_set.warnings[0]
    assert SECRET not in memory_set.warnings[0]


# --- tokens ----------------------------------------------------------------------------------------------------------


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("eos", [True, False])
def test_an_encoded_fact_is_prompt_then_target_then_end_of_sequence(eos):
    (fact,) = encode(facts(("Answer:", " the 42"), eos=eos), TOKENIZER, context=64)
    assert fact.prompt == ids_of(TOKENIZER, "Answer:")
    assert fact.target == ids_of(TOKENIZER, " the 42") + ((TOKENIZER.eos_token_id,) if eos else ())
    assert fact.length == len(fact.target)


def test_the_beginning_of_sequence_is_there_exactly_if_the_tokenizer_puts_it_and_once(tmp_path):
    assert encode(facts(("q", "a")), TOKENIZER, context=None)[0].prompt == ids_of(TOKENIZER, "q")
    assert encode(facts(("q", "a")), WITH_BOS, context=None)[0].prompt == (0, *ids_of(WITH_BOS, "q"))
    chats = read(chat(tmp_path, TURNS), tokenizer=WITH_BOS)
    assert encode(chats, WITH_BOS, context=None)[0].prompt == ids_of(WITH_BOS, chats.facts[0].prompt)
    assert encode(chats, WITH_BOS, context=None)[0].prompt.count(0) == 1


def test_a_doubled_beginning_of_sequence_is_refused():
    with pytest.raises(DataError, match="fact '0' begins with the beginning-of-sequence token twice"):
        encode(facts(("<s><s>q", "a")), WITH_BOS, context=None)


def test_end_of_sequence_that_the_tokenizer_lacks_is_refused_unless_declined():
    tokenizer = byte_level(eos=False)
    with pytest.raises(DataError, match=r"the tokenizer has none.*eos=False \(--no-eos\)"):
        encode(facts(("q", "a"), eos=True), tokenizer, context=None)
    assert encode(facts(("q", "a")), tokenizer, context=None)[0].target == ids_of(tokenizer, "a")


def test_a_target_made_of_tokens_is_taken_as_it_is():
    memory_set = MemorySet((Fact("q", "", "1", target_ids=(5, 5, 300)),), eos=True, source="test")
    assert encode(memory_set, TOKENIZER, context=None)[0].target == (5, 5, 300, TOKENIZER.eos_token_id)


def test_a_fact_longer_than_the_context_is_refused_with_both_numbers():
    memory_set = facts(("q", "a"), ("abc", "defgh"))
    assert len(encode(memory_set, LETTERS, context=8)) == 2
    with pytest.raises(DataError, match=r"Fact '1' has 8 tokens \(3 of its prompt, 5 of its target\).*context.*is 7"):
        encode(memory_set, LETTERS, context=7)
    whole = encode(memory_set, LETTERS, context=None)
    check_context(take(whole, 1), 2)
    with pytest.raises(DataError, match="is 7"):
        check_context(whole, 7)


def test_a_prompt_or_target_without_tokens_is_refused():
    for tokenizer in (LETTERS, letters(bos=True)):
        with pytest.raises(DataError, match="prompt of fact '0' has no tokens"):
            encode(facts(("123", "a")), tokenizer, context=None)
    with pytest.raises(DataError, match="target of fact '0' has no tokens"):
        encode(facts(("a", "123")), LETTERS, context=None)
    from_a_file = MemorySet((Fact("a", "1", "x", line=9),), eos=True, source="test")
    with pytest.raises(DataError, match=r"target of fact 'x' \(line or row 9\)"):
        encode(from_a_file, LETTERS, context=None)


def test_prompts_that_become_the_same_tokens_cannot_have_different_targets():
    with pytest.raises(DataError, match=r"prompts of facts '0' and '1' are the same 3 tokens.*cannot tell"):
        encode(facts(("abc", "x"), ("A b C!", "y")), LETTERS, context=None)
    assert len(encode(facts(("abc", "x"), ("ABC", "X")), LETTERS, context=None)) == 2


def test_a_prompt_that_runs_through_another_facts_target_cannot_demand_another_token():
    with pytest.raises(DataError, match=r"Facts '0' and '1' share their first 3 tokens.*demand different ones"):
        encode(facts(("ab", "cd"), ("abc", "x")), LETTERS, context=None)
    assert len(encode(facts(("ab", "cd"), ("abc", "dx")), LETTERS, context=None)) == 2


WORDS = st.text("ab", min_size=1, max_size=3)


@given(given_pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), eos=st.booleans())
def test_facts_are_refused_exactly_if_some_tokens_would_need_two_continuations(given_pairs, eos):
    one_by_one = [encode(facts(pair, eos=eos), LETTERS, context=None)[0] for pair in given_pairs]
    try:
        encode(facts(*given_pairs, eos=eos), LETTERS, context=None)
    except DataError:
        assert contradict(one_by_one)
    else:
        assert not contradict(one_by_one)


def test_a_merge_across_the_border_is_found():
    assert len(ids_of(TOKENIZER, "the")) == 1
    memory_set = facts(("say t", "he"), ("say", " the"), ("number:", "42"))
    assert border_merges(memory_set, TOKENIZER) == ("0",)
    tokens_only = MemorySet((Fact("say t", "he", "1", target_ids=(5,)),), eos=False, source="test")
    assert border_merges(tokens_only, TOKENIZER) == ()


# --- the length axis -------------------------------------------------------------------------------------------------


def encoded(lengths: list[int]) -> tuple[EncodedFact, ...]:
    return tuple(EncodedFact(str(n), (n, *range(100, 100 + length)), 1) for n, length in enumerate(lengths))


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(lengths=LENGTHS)
def test_one_target_is_cut_exactly_and_records_are_never_cut(lengths):
    whole = encoded(lengths)
    ends = list(itertools.accumulate(lengths))
    assert target_tokens(whole) == ends[-1]
    for length in range(ends[0] if len(lengths) > 1 else 1, ends[-1] + 1):
        part = take(whole, length)
        if len(lengths) == 1:
            assert target_tokens(part) == length
            assert part[0].prompt == whole[0].prompt
            assert part[0].target == whole[0].target[:length]
        else:
            assert part == whole[: sum(end <= length for end in ends)]


@given(lengths=LENGTHS, data=st.data())
def test_a_longer_prefix_begins_with_the_shorter_one(lengths, data):
    whole = encoded(lengths)
    points = st.integers(lengths[0] if len(lengths) > 1 else 1, sum(lengths))
    short, long = sorted(data.draw(st.tuples(points, points)))
    assert take(take(whole, long), min(short, target_tokens(take(whole, long)))) == take(whole, short)


def test_the_whole_length_is_the_whole_set_with_its_end_of_sequence():
    whole = encode(facts(("q", "abc"), eos=True), LETTERS, context=None)
    assert take(whole, 4) == whole
    assert take(whole, 3)[0].target == ids_of(LETTERS, "abc")


@pytest.mark.parametrize("length", [0, -1, 10])
def test_a_length_outside_the_data_is_refused_with_both_numbers(length):
    with pytest.raises(DataError, match=rf"length of {length} target tokens was asked for, but the data have 1 to 9"):
        take(encoded([4, 5]), length)


def test_a_length_below_the_first_record_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"length of 3 target tokens.*first fact \('0'\) alone has 4"):
        take(encoded([4, 5]), 3)


def test_nothing_can_be_taken_of_nothing():
    with pytest.raises(DataError, match="length of 1 "):
        take((), 1)
