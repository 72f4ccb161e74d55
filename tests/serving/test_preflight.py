"""What a server does otherwise is said before its facts are asked for."""

from __future__ import annotations

from typing import Any

import pytest

import memlaw
from helpers import tiny
from helpers.serving import FACTS, Mind, Start
from memlaw.core.facts import MemorySet
from memlaw.serving.dialects.base import About
from memlaw.serving.preflight import Expectation, mark_differences
from memlaw.serving.settings import VerifyConfig

ONE = MemorySet(FACTS.facts[:1], eos=True, source="one")


def differences(
    start: Start, kind: str = "llama.cpp", *, adapter_name: str | None = None, **settings: Any
) -> dict[str, str]:
    with start(kind, **settings) as running:
        config = VerifyConfig(adapter_name=adapter_name, retries=0)
        found = memlaw.verify(running.url, ONE, tiny.tokenizer(), config=config).differences
    return {difference.code: difference.message for difference in found}


def test_a_server_that_asks_as_recall_does_differs_in_nothing(start: Start) -> None:
    assert differences(start, adapter_name="facts", sampler={"temperature": 0.0, "repeat_penalty": 1.0}) == {}
    assert differences(start, "vllm", adapter_name="facts") == {}


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ({"temperature": 0.8}, "temperature 0.8"),
        ({"temperature": 0.0, "repeat_penalty": 1.1}, "repeat_penalty 1.1"),
        ({"temperature": 0.0, "dry_multiplier": 0.5, "mirostat": 2}, "dry_multiplier 0.5, mirostat 2"),
    ],
)
def test_a_sampler_that_does_not_emit_the_most_probable_token_is_named(
    start: Start, sampler: dict[str, float], said: str
) -> None:
    assert f"get {said} here" in differences(start, adapter_name="facts", sampler=sampler)["sampler"]


@pytest.mark.parametrize(
    ("scale", "said"),
    [(0.0, "are answered by the bare model"), (0.5, "at a scale of 0.5 instead of 1"), (1.0, None)],
)
def test_an_adapter_that_no_request_names_is_looked_at(start: Start, scale: float, said: str | None) -> None:
    found = differences(start, scale=scale).get("adapter")
    assert found is None if said is None else said in str(found)
    assert "adapter" not in differences(start, scale=scale, adapter_name="facts")


def test_two_adapters_at_once_are_named(start: Start, minds: dict[str, Mind]) -> None:
    both = {**minds, "more": minds["facts"]}
    assert "applies 2 adapters at once (facts.gguf, more.gguf)" in differences(start, minds=both, scale=1.0)["adapter"]


def test_a_prompt_that_the_server_tokenises_otherwise_is_named(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mind, "ids", lambda self, text: [1, *self.base.tokenizer.encode(text)])
    found = differences(start, "sglang", adapter_name="facts")
    assert "other tokens of the prompts of 1 of 1 facts (f1)" in found["tokens"]


def test_another_end_of_sequence_is_named() -> None:
    expected = Expectation(tiny.tokenizer(), (2,), chat=True)
    (end,) = mark_differences(About(eos="<pad>"), expected)
    assert "ends answers at <pad>, and the facts end with <eos>" in end.message
    assert list(mark_differences(About(eos="<eos>"), expected)) == []
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    (template,) = mark_differences(About(template="{{ other }}"), Expectation(tokenizer, (2,), chat=True))
    assert template.code == "template"
    assert list(mark_differences(About(template="{{ other }}"), Expectation(tokenizer, (2,), chat=False))) == []
