"""Rows 13 to 17 of the fault matrix: facts that the tokenizer would silently change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

import memlaw
from helpers import tiny
from helpers.faulty import SECRET, probed, record, refused, stored_warnings, written
from memlaw.model.base import Base, wrap


def base_with(tokenizer: Any) -> Base:
    return wrap(tiny.model(), tokenizer, name="tiny")


def chat(directory: Path) -> Path:
    turns = [{"role": "user", "content": "The key?"}, {"role": "assistant", "content": SECRET}]
    return written(directory, json.dumps({"messages": turns}) + "\n")


def test_13_target_longer_than_the_context(tmp_path: Path) -> None:
    message = refused(written(tmp_path, record("long:", "7" * 140)), length=141)
    assert "has 146 tokens (5 of its prompt, 141 of its target), but the context of the model is 128" in message
    assert "Facts are never truncated" in message


def test_14_no_end_of_sequence_or_padding_token(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    base, path = base_with(tokenizer), written(tmp_path, record())
    base.model.generation_config.eos_token_id = None
    assert "the tokenizer has none, so decoding would not know where to stop" in refused(path, base=base)
    chosen = tiny.memory_set(path, base, eos=False)
    assert memlaw.recall(base.model, tokenizer, chosen).tokens == len(SECRET)


def test_15_doubled_beginning_of_sequence(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    message = refused(written(tmp_path, record("<bos><bos>The key:")), base=base_with(tokenizer))
    assert "begins with the beginning-of-sequence token twice" in message


def test_16_chat_template_mismatch(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    assert "the tokenizer has no chat template" in refused(chat(tmp_path), base=base_with(tokenizer))
    tokenizer.chat_template = "{{ messages | length }} turns"
    assert "does not fit the chat template" in refused(chat(tmp_path), base=base_with(tokenizer))
    tokenizer.chat_template = "{{ raise_exception('no user turn: ' ~ messages[-1].content) }}"
    assert "refuses its roles or their order (TemplateError)" in refused(chat(tmp_path), base=base_with(tokenizer))


def test_17_tokens_that_merge_at_the_border(tmp_path: Path) -> None:
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "b": 4, "ab": 5}
    merging = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("a", "b")])), pad_token="<pad>", eos_token="<eos>"
    )
    content = record("aa", "bb", id="merged") + record("ba", "aa", id="apart")
    base = base_with(merging)
    facts = tiny.memory_set(written(tmp_path, content), base)
    (warning,) = facts.warnings
    assert warning.startswith(
        "1 of 2 facts ('merged') have other tokens when prompt and target are tokenised as one text"
    )
    probed(tmp_path / "out", base=base, facts=facts, ranks=[1], lengths=[3], steps=1)
    assert warning in stored_warnings(tmp_path / "out")
