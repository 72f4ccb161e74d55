from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.memory_sets import GOOD, PAIRS, SECRET, WITH_BOS, pairs, records, refused, write
from memlaw.core.errors import DataError
from memlaw.data import read, read_text, sources


@pytest.mark.parametrize("name", ["missing.jsonl", "missing/facts.jsonl", "./missing", "missing"])
def test_a_missing_file_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert f"The file {name!r} does not exist" in refused(name)


def test_a_directory_is_not_a_memory_set(tmp_path):
    assert "is a directory, but not a dataset" in refused(tmp_path)


def test_a_text_given_instead_of_a_path_is_not_shown():
    assert "cannot be opened" in refused(f"The password is {SECRET}. " * 300)
    assert "cannot be opened" in refused(f"{SECRET}\0")


def test_a_file_without_permission_or_content_to_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", GOOD)

    def no_permission(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no_permission)
    assert "cannot be read: Permission denied" in refused(path)


@pytest.mark.parametrize("size", [1 << 20, 64 << 20])
def test_gzip_that_expands_a_thousandfold_is_refused(tmp_path, size):
    message = refused(write(tmp_path / "a.txt.gz", gzip.compress(b"a" * size)))
    assert "decompression bomb" in message
    assert f"more than {max(64 << 10, 100 * len(gzip.compress(b'a' * size)))}" in message


def test_a_file_too_large_to_be_a_memory_set_is_refused_before_it_fills_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE", 3 << 20)
    assert "is larger than 3 MB" in refused(write(tmp_path / "a.jsonl", b"\n" * ((3 << 20) + 1)))


def test_read_text_is_verbatim(tmp_path):
    assert read_text(write(tmp_path / "a", b"\xef\xbb\xbf a\r\nb\x00\xef\xbb\xbf")) == " a\r\nb\x00\ufeff"


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
    assert "splits a, b, none of them called train" in refused(tmp_path / "neither")


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
    assert "The file 'owner/facts' does not exist" in refused("owner/facts")


def test_a_dataset_that_the_hub_lacks_is_refused(tmp_path, monkeypatch):
    """The tests run offline, so this holds for any dataset."""
    monkeypatch.chdir(tmp_path)
    assert "owner/facts is neither a local file nor a dataset that can be loaded from the Hub" in refused("owner/facts")


def test_without_the_datasets_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'memlaw[datasets]'" in refused("owner/facts")
