from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.checks import GOOD, facts, findings_of, other_base, the_one
from helpers.slow_data import CHAT_TEMPLATE, byte_level
from memlaw.api import check, check_on
from memlaw.model.base import Base

CHAT = "chat-template-mismatch"


@pytest.fixture(scope="module")
def chatting() -> Base:
    return other_base(byte_level(chat_template=CHAT_TEMPLATE))


def test_raw_prompts_for_a_model_that_chats_are_one_warning(chatting: Base, base: Base) -> None:
    finding = the_one(check_on(chatting, facts(*GOOD)), CHAT)
    assert (finding.severity, finding.record) == ("warning", None)
    assert not findings_of(check_on(base, facts(*GOOD)), CHAT)


def test_prompts_in_the_template_are_as_they_should_be(chatting: Base, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Code?"}, {"role": "assistant", "content": "4917"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    assert not findings_of(check(chatting.model, chatting.tokenizer, path), CHAT)


def test_raw_prompts_among_templated_ones_are_named(chatting: Base) -> None:
    report = check_on(chatting, facts(("<s><user>Code?</s><assistant>", "1"), ("Name?", "2"), ("Place?", "3")))
    assert [(f.record, f.severity) for f in findings_of(report, CHAT)] == [("2", "warning"), ("3", "warning")]


def test_another_models_template_is_an_error_with_and_without_a_template_of_ones_own(
    chatting: Base, base: Base
) -> None:
    foreign = facts(("[INST] Code? [/INST]", "4917"))
    for judged in (chatting, base):
        finding = the_one(check_on(judged, foreign), CHAT)
        assert (finding.severity, finding.record) == ("error", "1")
        assert "[INST]" in finding.message


def test_a_template_that_refuses_the_question_says_nothing(chatting: Base) -> None:
    tokenizer = byte_level(chat_template="{{ raise_exception('never') }}")
    assert not findings_of(check_on(other_base(tokenizer), facts(*GOOD)), CHAT)


def test_a_template_without_a_generation_prompt_is_known_by_the_end_of_the_question() -> None:
    base = other_base(byte_level(chat_template="{% for m in messages %}[{{ m['content'] }}] {% endfor %}"))
    assert not findings_of(check_on(base, facts(("[Code?] ", "4917"))), CHAT)
    assert findings_of(check_on(base, facts(("Code? ", "4917"))), CHAT)
