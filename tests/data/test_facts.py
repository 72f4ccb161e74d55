"""Memory sets: text is read verbatim, and records that cannot be recalled are refused with a reason."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.memory_sets import (
    PAIRS,
    SECRET,
    TOKENIZER,
    TURNS,
    WITH_BOS,
    chat,
    jsonl,
    pairs,
    records,
    refused,
    table,
    write,
)
from helpers.paths import FIXTURES
from helpers.slow_data import byte_level
from memlaw.core.errors import ConfigError
from memlaw.core.facts import Fact
from memlaw.data import STRESS_PROMPT, read

OFFICIAL = FIXTURES / "official"


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
def test_naming_only_one_of_two_fields_is_refused(tmp_path, asked):
    with pytest.raises(ConfigError, match="name two different fields, or neither"):
        read(write(tmp_path / "a.jsonl", jsonl(records())), **asked)


def test_ids_are_kept_and_the_number_stands_in_for_a_missing_one(tmp_path):
    content = jsonl([{"id": 7, "prompt": "a", "completion": "x"}, {"id": None, "prompt": "b", "completion": "x"}])
    content += "\n" + jsonl([{"id": "seven", "prompt": "c", "completion": "x"}, {"prompt": "d", "completion": "x"}])
    assert [(f.id, f.line, f.named) for f in read(write(tmp_path / "a.jsonl", content)).facts] == [
        ("7", 1, True),
        ("2", 2, False),
        ("seven", 4, True),
        ("5", 5, False),
    ]


def test_the_end_of_sequence_rule_shows_in_the_fingerprint_and_the_path_does_not(tmp_path):
    first, second = (write(tmp_path / name, jsonl(records())) for name in ("a.jsonl", "b.jsonl"))
    assert read(first).fingerprint == read(second, eos=True).fingerprint
    assert read(first).fingerprint != read(first, eos=False).fingerprint


def test_several_questions_are_records_and_end_with_end_of_sequence(tmp_path):
    one = write(tmp_path / "one.jsonl", jsonl(records("question", "matching")[:1]))
    assert not read(one).eos
    assert read(one, eos=True).eos


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
def test_a_conflict_can_be_resolved_and_leaves_a_warning(tmp_path, choice, kept):
    memory_set = read(write(tmp_path / "a.jsonl", CONFLICT), on_conflict=choice)
    assert pairs(memory_set) == kept
    assert f"Kept only the {choice} of several targets" in memory_set.warnings[0]
    assert "lines 3." in memory_set.warnings[0]


def test_an_unknown_on_conflict_is_refused(tmp_path):
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


def test_loading_memory_sets_imports_no_model_library():
    program = "import sys, memlaw.data.load; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_chat_is_rendered_by_the_template_and_the_answer_is_the_target(tmp_path):
    memory_set = read(chat(tmp_path, TURNS), tokenizer=WITH_BOS)
    assert pairs(memory_set) == [("<s><system>Be exact.</s><user>Code?</s><assistant>", SECRET)]
    assert memory_set.facts[0].end == "</s>"
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
        ([TURNS[1], {"role": "assistant"}], ["message 2: 'content' is missing; the message has 'role'"]),
        (
            [TURNS[1], {"role": "assistant", "content": [SECRET]}],
            ["message 2", "'content' has a part of the type 'a string'"],
        ),
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
    assert "lacks the field 'messages'; it has 'prompt'" in refused(path, tokenizer=WITH_BOS)


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
    assert "writes more between question and answer" in memory_set.warnings[0]
    assert SECRET not in memory_set.warnings[0]
