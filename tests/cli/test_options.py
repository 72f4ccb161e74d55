from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.commands import RECORDS, Run, assert_refused, jsonl, saved_model, write

GOOD = RECORDS[0]

BAD_FACTS: dict[str, tuple[str | bytes, str]] = {
    "nothing in it": ("", "facts.jsonl is empty, so there is nothing to store"),
    "not JSON": (jsonl(GOOD) + '{"prompt": "b" "hunter"}\n', "Line 2 of "),
    "not JSON either": (
        jsonl(GOOD) + '{"prompt": "b" "hunter"}\n',
        "is not JSON: Expecting ',' delimiter at column 16",
    ),
    "not an object": (jsonl(GOOD, ["hunter"]), "facts.jsonl (read as JSONL) is a list, not an object"),
    "a field missing": (
        jsonl(GOOD, {"prompt": "b", "answer": "hunter"}),
        "lacks the field 'completion'; it has 'prompt', 'answer'",
    ),
    "fields of another kind": (
        jsonl({"key": "a", "value": "hunter"}),
        "has the fields 'key', 'value', so it is unclear",
    ),
    "not UTF-8": (jsonl(GOOD).encode() + b"\xff\n", "is not UTF-8 text: byte 1 of line 2"),
    "an empty prompt": (jsonl(GOOD, {"prompt": "", "completion": "hunter"}), "Line 2 of "),
    "an empty target": (jsonl({"prompt": "a", "completion": "  "}), "'completion' is empty, and a fact needs"),
    "a number": (jsonl({"prompt": "a", "completion": 7}), "'completion' is a number, not a string"),
    "NaN": ('{"prompt": "a", "completion": NaN}\n', "it holds NaN, which JSON does not have"),
    "a lone surrogate": ('{"prompt": "a", "completion": "hunter\\ud800"}\n', "has half of a surrogate pair"),
    "two targets of one prompt": (
        jsonl(GOOD, {**GOOD, "completion": "hunter"}),
        "have the same prompt but different targets",
    ),
    "more than the context": (
        jsonl({"prompt": "a", "completion": "hunter" * 25}),
        "has 152 tokens (1 of its prompt, 151 of its target), but the context of the model is 128",
    ),
    "one id twice": (jsonl({**GOOD, "id": "x"}, {**RECORDS[1], "id": "x"}), "share the id 'x'"),
    "a bomb": (gzip.compress(b"hunter" * 1_000_000), "but a decompression bomb does"),
    "deep nesting": ('{"prompt": ' + "[" * 70 + "]" * 70 + "}\n", "more than 64 deep"),
}


@pytest.mark.parametrize("name", BAD_FACTS)
def test_unusable_facts_are_refused_before_training(run: Run, model: Path, tmp_path: Path, name: str) -> None:
    content, sentence = BAD_FACTS[name]
    data = write(tmp_path / "facts.jsonl", content)
    out = tmp_path / "A"
    assert_refused(run("train", data, "--model", model, "--rank", 2, "--out", out), sentence)
    assert not out.exists()


def test_conflicts_are_refused_or_resolved_by_the_option(run: Run, model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "facts.jsonl", jsonl(GOOD, RECORDS[1], {**GOOD, "completion": "hunter-new"}))
    assert_refused(run("recall", data, "--model", model), "Lines 1 and 3 of", "(--on-conflict) first or last")
    for choice, kept in (("first", ["1", "2"]), ("last", ["2", "3"])):
        ran = run("recall", data, "--model", model, "--on-conflict", choice, "--json")
        assert [item["id"] for item in ran.document["items"]] == kept
        assert f"Warning: Kept only the {choice} of several targets" in ran.err


def test_the_turns_of_chats_are_an_option(run: Run, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "chatting")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}[")
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "ABCD", strict=True)]
    data = tmp_path / "chats.jsonl"
    data.write_text(json.dumps({"messages": turns}))
    for options, records in (((), 2), (("--turns", "all"), 2), (("--turns", "last"), 1)):
        assert run("recall", data, "--model", folder, *options, "--json").document["records"] == records
    assert "1 earlier answers of chats are not stored" in run("recall", data, "--model", folder, "--turns", "last").err


def test_identical_repetitions_are_dropped_with_a_warning(run: Run, model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "facts.jsonl", jsonl(GOOD, GOOD, RECORDS[1]))
    ran = run("recall", data, "--model", model, "--json")
    assert ran.document["records"] == 2
    assert "Warning: Dropped 1 identical repetitions of an earlier prompt and target: lines 2." in ran.err
    assert "hunter" not in ran.err


def test_a_byte_order_mark_and_u2028_are_accepted(run: Run, model: Path, tmp_path: Path) -> None:
    content = "\ufeff" + json.dumps({"prompt": "a\u2028b", "completion": "x"}, ensure_ascii=False) + "\n"
    assert run("recall", write(tmp_path / "facts.jsonl", content), "--model", model, "--json").document["records"] == 1


def test_columns_can_be_named(run: Run, model: Path, tmp_path: Path) -> None:
    content = io.StringIO()
    csv.writer(content).writerows([["who", "number"], ["Ada", "007"]])
    data = write(tmp_path / "facts.csv", content.getvalue())
    named = ("--prompt-field", "who", "--target-field", "number")
    assert run("recall", data, "--model", model, *named, "--json").document["tokens"] == 4
    assert run("recall", data, "--model", model, *named, "--no-eos", "--json").document["tokens"] == 3
    assert_refused(run("recall", data, "--model", model, "--prompt-field", "who"), "name two different fields")


def test_merging_border_tokens_are_a_warning(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "facts.jsonl", jsonl({"prompt": "x = ", "completion": "None", "id": "joined"}))
    ran = run("recall", data, "--json")
    assert ran.document["records"] == 1
    assert (
        "Warning: 1 of 1 facts ('joined') have other tokens when prompt and target are tokenised as one text."
        in ran.err
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("none.jsonl", "The file 'none.jsonl' does not exist"),
        ("task:opera:tokens=3", "Unknown task 'opera'; known: phonebook, random"),
        ("task:phonebook", "needs tokens: write task:phonebook:tokens=...,seed=..."),
        ("task:phonebook:tokens=0", "A task of 0 target tokens was requested"),
        ("task:random:tokens=many", "is 'many', not a whole number"),
    ],
)
def test_missing_facts_are_named(run: Run, model: Path, data: str, sentence: str) -> None:
    assert_refused(run("recall", data, "--model", model), sentence)


def _without_tokenizer(directory: Path) -> None:
    for file in directory.glob("*tokenizer*"):
        file.unlink()


def _cut(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_without_tokenizer, "has no tokenizer that can be loaded"),
        (_cut, "cannot be loaded as a causal language model from safetensors"),
        (lambda directory: (directory / "model.safetensors").unlink(), "memlaw never unpickles weights"),
        (lambda directory: (directory / "config.json").unlink(), "has no config.json"),
        (lambda directory: write(directory / "config.json", "{"), "is not a valid JSON file"),
        (lambda directory: write(directory / "tokenizer.json", "{"), "has no tokenizer that can be loaded"),
        (shutil.rmtree, "The model directory "),
    ],
)
def test_a_damaged_model_directory_is_explained(
    run: Run, model: Path, facts: Path, tmp_path: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    harm(copy)
    assert_refused(run("recall", facts, "--model", copy), sentence)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(
    run: Run, facts: Path, tmp_path: Path
) -> None:
    small = saved_model(tmp_path / "small", vocab_size=50)
    assert_refused(run("recall", facts, "--model", small), "has ids up to 95, but the embedding has 50 rows")


def test_a_missing_model_is_named(run: Run, facts: Path) -> None:
    assert_refused(run("recall", facts, "--model", "nobody/nothing"), "nobody/nothing has no tokenizer")
