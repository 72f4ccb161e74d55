"""Chats: prompts and answers are what the template of the model writes, judged by transformers' own rendering."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pytest
from peft import PeftModel
from transformers.utils import chat_template_utils

import memlaw
from helpers import tiny
from helpers.memory_sets import SECRET, WITH_BOS, jsonl, pairs, refused, write
from helpers.slow_data import byte_level
from helpers.templates import tokenizer
from memlaw.core.facts import MemorySet
from memlaw.data import encode, read

QUESTION: dict[str, Any] = {"role": "user", "content": "Code of A?"}
LONG: list[dict[str, Any]] = [
    QUESTION,
    {"role": "assistant", "content": "4917#"},
    {"role": "user", "content": "And of B?"},
    {"role": "assistant", "content": "5023#"},
    {"role": "user", "content": "And of C?"},
    {"role": "assistant", "content": "8841#"},
]

CALL = {"id": "c1", "type": "function", "function": {"name": "ledger", "arguments": {"account": "77-04"}}}
TOOLS = [{"type": "function", "function": {"name": "ledger", "description": "Looks up.", "parameters": {}}}]
TOOL_CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Balance of 77-04?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "1,204.55"},
    {"role": "assistant", "content": "1,204.55 EUR"},
]


def of(tmp_path: Path, *records: Any, tokenizer: Any = WITH_BOS, **options: Any) -> MemorySet:
    return read(write(tmp_path / "chats.jsonl", jsonl(list(records))), tokenizer=tokenizer, **options)


def asked(chat: list[Any], count: int, by: Any, **options: Any) -> str:
    """What a server sends: the first `count` messages, rendered by transformers."""
    text: str = by.apply_chat_template(chat[:count], tokenize=False, add_generation_prompt=True, **options)
    return text


@pytest.mark.parametrize(
    ("template", "stop"),
    [
        ("llama3_training", "<|eot_id|>"),
        ("qwen3_instruct_2507_training", "<|im_end|>"),
        ("gemma_training", "<end_of_turn>"),
        ("phi3_training", "<|end|>"),
    ],
)
def test_what_is_stored_is_what_trl_trains_of_every_turn(tmp_path: Path, template: str, stop: str) -> None:
    """transformers marks the tokens of the assistant; TRL trains those. The text after the stop is not generated."""
    by = tokenizer(template)
    rendered = by.apply_chat_template(LONG, return_dict=True, return_assistant_tokens_mask=True)
    stops = (by.convert_tokens_to_ids(stop),)
    answers: list[list[int]] = []
    inside = False
    for token, own in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True):
        if own and not inside:
            answers.append([])
        if own and (not answers[-1] or answers[-1][-1] not in stops):
            answers[-1].append(token)
        inside = bool(own)
    memory_set = of(tmp_path, {"messages": LONG}, tokenizer=by)
    encoded = encode(memory_set, by, context=None, stops=stops)
    assert [list(fact.target) for fact in encoded] == answers
    assert [fact.prompt for fact in memory_set.facts] == [asked(LONG, count, by) for count in (1, 3, 5)]


def test_every_answer_is_a_fact_and_its_id_tells_which(tmp_path: Path) -> None:
    chats = [{"id": "a", "messages": LONG}, {"messages": [{"role": "user", "content": "D?"}, LONG[1]]}]
    memory_set = of(tmp_path, *chats)
    assert [(fact.id, fact.target, fact.named) for fact in memory_set.facts] == [
        ("a", "4917#", True),
        ("a-2", "5023#", True),
        ("a-3", "8841#", True),
        ("2", "4917#", False),
    ]
    assert memory_set.warnings == ()


def test_the_last_answer_alone_is_stored_as_ever_and_the_others_are_counted(tmp_path: Path) -> None:
    memory_set = of(tmp_path, {"id": "a", "messages": LONG}, turns="last")
    assert [(fact.id, fact.prompt, fact.target) for fact in memory_set.facts] == [
        ("a", asked(LONG, 5, WITH_BOS), "8841#")
    ]
    assert "2 earlier answers of chats are not stored" in memory_set.warnings[0]
    assert "lines 1." in memory_set.warnings[0]


ENDING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}END{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_the_end_of_answers_changes_the_fingerprint_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    """The fingerprint of a chat that ends with the tokenizer's end of sequence is that of before ends were kept."""
    one = {"messages": LONG[:2]}
    assert of(tmp_path, one).fingerprint == "883e8d8176ba6fff6eef4756be587e891304bda01e92975d8b12ac7c2b4da745"
    usual, other = (byte_level(chat_template=ENDING.replace("END", end)) for end in ("</s>", "<s>"))
    ended, otherwise = (of(tmp_path, one, tokenizer=by) for by in (usual, other))
    assert pairs(ended) == pairs(otherwise)
    assert ended.fingerprint != otherwise.fingerprint
    without = [of(tmp_path, one, tokenizer=by, eos=False).fingerprint for by in (usual, other)]
    assert without[0] == without[1]


def test_chats_that_share_their_first_question_say_how_to_store_the_last_answers(tmp_path: Path) -> None:
    other = [QUESTION, {"role": "assistant", "content": SECRET}, *LONG[2:]]
    path = write(tmp_path / "a.jsonl", jsonl([{"messages": LONG}, {"messages": other}]))
    assert "--turns) last" in refused(path, tokenizer=WITH_BOS)
    assert len(read(path, tokenizer=WITH_BOS, turns="last").facts) == 2


@pytest.mark.parametrize("template", ["qwen3", "qwen2_5", "llama3_1", "glm4moe"])
def test_tools_calls_and_their_results_reach_the_template(tmp_path: Path, template: str) -> None:
    by = tokenizer(template)
    memory_set = of(tmp_path, {"messages": TOOL_CHAT, "tools": TOOLS}, tokenizer=by)
    whole = by.apply_chat_template(TOOL_CHAT, tokenize=False, tools=TOOLS)
    call, answer = memory_set.facts
    assert call.prompt == asked(TOOL_CHAT, 1, by, tools=TOOLS)
    assert answer.prompt == asked(TOOL_CHAT, 3, by, tools=TOOLS)
    assert "Looks up." in call.prompt
    assert "1,204.55" in answer.prompt
    assert "ledger" in call.target
    assert "77-04" in call.target
    written = by.apply_chat_template(TOOL_CHAT[:2], tokenize=False, tools=TOOLS)
    assert written.startswith(call.prompt)
    assert written.endswith(call.target + (call.end or ""))
    assert answer.target == "1,204.55 EUR"
    assert whole.endswith(answer.target + (answer.end or ""))


def test_reasoning_is_part_of_the_answer_where_the_template_writes_it(tmp_path: Path) -> None:
    by = tokenizer("qwen3")
    chat = [QUESTION, {"role": "assistant", "content": "R. Vale", "reasoning_content": "The ledger lists it."}]
    (fact,) = of(tmp_path, {"messages": chat}, tokenizer=by).facts
    assert fact.prompt == asked(chat, 1, by)
    assert fact.target == "<think>\nThe ledger lists it.\n</think>\n\nR. Vale"
    assert fact.prompt + fact.target + str(fact.end) == by.apply_chat_template(chat, tokenize=False)


def test_variables_of_the_template_are_those_of_the_record(tmp_path: Path) -> None:
    by = tokenizer("qwen3")
    chat, variables = LONG[:2], {"enable_thinking": False}
    memory_set = of(tmp_path, {"messages": chat, "chat_template_kwargs": variables}, tokenizer=by)
    assert memory_set.facts[0].prompt == asked(chat, 1, by, enable_thinking=False)
    assert memory_set.warnings == ()
    unset = of(tmp_path, {"messages": chat}, tokenizer=by)
    assert "enable_thinking" in unset.warnings[0]


def test_fields_that_the_template_ignores_are_named(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Code of B?", "mood": "curious"}, {**LONG[1], "tool_calls": [CALL]}]
    warnings = of(tmp_path, {"messages": LONG[:2]}, {"messages": chat, "tools": TOOLS}).warnings
    assert len(warnings) == 1
    for name in ("'mood' (lines 2)", "'tool_calls' (lines 2)", "'tools' (lines 2)"):
        assert name in warnings[0]


def test_a_call_that_the_template_cannot_write_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([{"messages": TOOL_CHAT}]))
    message = refused(path, tokenizer=WITH_BOS)
    assert "message 2" in message
    assert "'tool_calls'" in message


@pytest.mark.parametrize("record", [{"functions": [{}]}, {"chat_template_kwargs": {"tokenize": True}}, {"tools": "no"}])
def test_what_cannot_reach_the_template_is_refused_by_name(tmp_path: Path, record: dict[str, Any]) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([{"messages": LONG, **record}]))
    assert repr(next(iter(record))) in refused(path, tokenizer=WITH_BOS)


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


TAKES_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_parts_of_content_are_the_templates_or_one_text(tmp_path: Path) -> None:
    several = [
        {"role": "user", "content": parts("Code", " of A?")},
        {"role": "assistant", "content": parts("49", "17#")},
    ]
    by = byte_level(chat_template=TAKES_PARTS)
    assert pairs(of(tmp_path, {"messages": several}, tokenizer=by)) == [(asked(several, 1, by), "4917#")]
    single = [{"role": "user", "content": parts("Code of A?")}, {"role": "assistant", "content": parts("4917#")}]
    assert pairs(of(tmp_path, {"messages": single})) == pairs(of(tmp_path, {"messages": LONG[:2]}))
    path = write(tmp_path / "a.jsonl", jsonl([{"messages": several}]))
    assert "'content' is a list of several parts" in refused(path, tokenizer=WITH_BOS)
    image = [{"role": "user", "content": [{"type": "image"}, *parts("Code?")]}, LONG[1]]
    path = write(tmp_path / "a.jsonl", jsonl([{"messages": image}]))
    assert "a part of the type 'image'" in refused(path, tokenizer=WITH_BOS)


@pytest.mark.parametrize("template", ["llama3_2", "qwen3", "llama3"])
def test_a_template_that_prints_the_date_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """Whether it prints the date is judged by transformers with its clock set to two days."""
    by = tokenizer(template)

    def on(day: int) -> tuple[str, MemorySet]:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime(2025, 4, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        return asked(LONG, 1, by), of(tmp_path, {"messages": LONG[:2]}, tokenizer=by)

    (first, facts), (second, later) = on(1), on(2)
    assert [facts.facts[0].prompt, later.facts[0].prompt] == [first, second]
    told = [warning for warning in facts.warnings if "prints the date" in warning]
    assert bool(told) == (first != second) == (template == "llama3_2")


def test_a_date_that_the_record_sets_is_no_date_of_today(tmp_path: Path) -> None:
    by = tokenizer("llama3_2")
    fixed = {"messages": LONG[:2], "chat_template_kwargs": {"date_string": "26 Jul 2024"}}
    memory_set = of(tmp_path, fixed, tokenizer=by)
    assert not [warning for warning in memory_set.warnings if "date" in warning]
    assert "26 Jul 2024" in memory_set.facts[0].prompt


SHAREGPT = [{"from": "human", "value": "Code of A?"}, {"from": "gpt", "value": "4917#"}]


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": SHAREGPT},
        {"conversations": LONG[:2]},
        {"prompt": LONG[:1], "completion": LONG[1:2]},
        {"messages": LONG[:2], "completion": None, "prompt": None},
    ],
)
def test_other_shapes_of_a_chat_are_the_same_chat(tmp_path: Path, record: dict[str, Any]) -> None:
    assert pairs(of(tmp_path, record)) == pairs(of(tmp_path, {"messages": LONG[:2]}))


def test_only_the_completion_of_a_prompt_is_stored(tmp_path: Path) -> None:
    """As TRL does: the answers in the prompt are history."""
    memory_set = of(tmp_path, {"prompt": LONG[:3], "completion": LONG[3:]})
    assert [fact.target for fact in memory_set.facts] == ["5023#", "8841#"]


def test_sharegpt_has_tools_and_a_system_prompt(tmp_path: Path) -> None:
    with_system = of(tmp_path, {"conversations": SHAREGPT, "system": "Be exact."})
    as_messages = of(tmp_path, {"messages": [{"role": "system", "content": "Be exact."}, *LONG[:2]]})
    assert pairs(with_system) == pairs(as_messages)
    tools = json.dumps(TOOLS)
    by = tokenizer("qwen2_5")
    told = of(tmp_path, {"conversations": SHAREGPT, "tools": tools}, tokenizer=by)
    assert told.facts[0].prompt == asked(LONG, 1, by, tools=TOOLS)


def test_an_unknown_speaker_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([{"conversations": [{"from": "narrator", "value": "x"}, *SHAREGPT]}]))
    message = refused(path, tokenizer=WITH_BOS)
    assert "message 1 is from 'narrator'" in message
    assert "human" in message


@pytest.mark.parametrize("before", [[], [{"role": "system", "content": "Be exact."}]])
def test_an_assistant_that_opens_the_chat_answers_nothing(tmp_path: Path, before: list[dict[str, Any]]) -> None:
    memory_set = of(tmp_path, {"messages": [*before, {"role": "assistant", "content": "Hello."}, *LONG[:2]]})
    assert [(fact.id, fact.target) for fact in memory_set.facts] == [("1", "4917#")]
    assert "1 messages of the assistant open their chat" in memory_set.warnings[0]


def test_a_system_prompt_alone_can_ask(tmp_path: Path) -> None:
    memory_set = of(tmp_path, {"messages": [{"role": "system", "content": "Code of A:"}, LONG[1]]})
    assert pairs(memory_set) == [("<s><system>Code of A:</s><assistant>", "4917#")]


def test_a_template_that_strips_answers_is_told(tmp_path: Path) -> None:
    chat = [QUESTION, {"role": "assistant", "content": " 4917# "}]
    memory_set = of(tmp_path, {"messages": chat}, tokenizer=tokenizer("llama3"))
    assert [(fact.target, fact.end) for fact in memory_set.facts] == [(" 4917# ", "<|eot_id|>")]
    assert "does not write the answer as it stands" in memory_set.warnings[0]


def test_a_saved_dataset_of_chats_with_and_without_calls_is_as_the_file(tmp_path: Path) -> None:
    plain = [{**message, "tool_calls": None} for message in LONG[:2]]
    called: list[dict[str, Any]] = [{**message, "tool_calls": message.get("tool_calls")} for message in TOOL_CHAT]
    for message in called:
        message.pop("tool_call_id", None)
    by = tokenizer("qwen2_5")
    records = [{"messages": plain}, {"messages": called}]
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "saved")
    assert pairs(read(tmp_path / "saved", tokenizer=by)) == pairs(of(tmp_path, *records, tokenizer=by))


@pytest.mark.parametrize("stops", [["<|im_end|>"], ["<|im_end|>", "</s>"]])
def test_generation_of_transformers_stops_after_every_answer_and_says_nothing_else(
    tmp_path: Path, stops: list[str]
) -> None:
    """PEFT applies the adapter, transformers renders, generates and decodes; memlaw only trains."""
    by = tokenizer("qwen3_instruct_2507")
    model = tiny.model(vocab_size=len(by), max_position_embeddings=256)
    model.generation_config.eos_token_id = by.convert_tokens_to_ids(stops)
    model.generation_config.pad_token_id = by.bos_token_id
    path = write(tmp_path / "chats.jsonl", jsonl([{"messages": LONG}]))
    memlaw.train(model, by, path, rank=8, placement="all-linear", out=tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter")
    for count in (1, 3, 5):
        prompt = by.apply_chat_template(LONG[:count], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        generated = adapted.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert by.decode(generated) == LONG[count]["content"] + "<|im_end|>"
