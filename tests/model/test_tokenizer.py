from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from helpers import tiny
from memlaw.core.errors import ModelError
from memlaw.model.base import load
from memlaw.model.tokenizer import auto_tokenizer, load_tokenizer, stop_ids, stop_ids_of_files, tokenizer_fingerprint

TEXTS = ("The code is 4711.", " leading", "trailing \n\n", "naïve — 数字", "<|endoftext|>", "<bos>", "")

CHAT = [{"role": "user", "content": "Which code?"}]


def alphabet() -> dict[str, int]:
    return {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def saved(tokenizer: Any, folder: Path, family: str) -> str:
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return str(folder)


def with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer that puts BOS before every text, in its post-processor, and renders chats."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{% for m in messages %}<bos>{{ m['content'] }}<eos>{% endfor %}"
    return tokenizer


def assert_same(one: Any, two: Any) -> None:
    """Equal in everything that memlaw uses of a tokenizer."""
    for text in TEXTS:
        for special in (False, True):
            assert one.encode(text, add_special_tokens=special) == two.encode(text, add_special_tokens=special)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "all_special_ids", "chat_template"):
        assert getattr(one, name) == getattr(two, name), name
    assert len(one) == len(two)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(two)
    if one.chat_template is not None:
        rendered = [t.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) for t in (one, two)]
        assert rendered[0] == rendered[1]


BASE, BASE_BY_AUTO = load_tokenizer(), auto_tokenizer("memlaw/base")


def test_the_bundled_tokenizer() -> None:
    assert_same(BASE, BASE_BY_AUTO)


@given(st.text(max_size=40))
def test_the_bundled_tokenizer_encodes_any_text_alike(text: str) -> None:
    assert BASE.encode(text) == BASE_BY_AUTO.encode(text)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2", "gemma2", "olmo2"])
@pytest.mark.parametrize("make", [tiny.tokenizer, with_bos])
def test_a_tokenizer_of_the_general_class(make: Any, family: str, tmp_path: Path) -> None:
    name = saved(make(), tmp_path, family)
    assert_same(load_tokenizer(name), auto_tokenizer(name))


@pytest.mark.parametrize(
    ("kind", "family"), [(Qwen2Tokenizer, "qwen3"), (GPT2Tokenizer, "gpt2"), (GPT2Tokenizer, "llama")]
)
def test_a_tokenizer_of_a_class_that_agrees_with_its_file(
    kind: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = saved(kind(vocab=alphabet(), merges=[]), tmp_path, family)
    expected = auto_tokenizer(name)
    monkeypatch.setattr("transformers.AutoTokenizer", None)  # it is not needed
    loaded = load_tokenizer(name)
    assert type(loaded) is kind
    assert_same(loaded, expected)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_where_class_and_file_disagree_autotokenizer_decides(family: str, tmp_path: Path) -> None:
    """Some checkpoints call a byte-level tokenizer a LlamaTokenizer, which would split text differently."""
    backend = Tokenizer(models.BPE(vocab=alphabet(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    name = saved(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="Z"), tmp_path, family)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(name)
    assert_same(loaded, auto_tokenizer(name))
    assert loaded.encode(" a b") != LlamaTokenizer.from_pretrained(name).encode(" a b")


def test_a_tokenizer_without_tokenizer_json_is_autotokenizers(tmp_path: Path) -> None:
    name = saved(GPT2Tokenizer(vocab=alphabet(), merges=[]), tmp_path, "gpt2")
    (tmp_path / "vocab.json").write_text(json.dumps(alphabet()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer.json").unlink()
    assert_same(load_tokenizer(name), auto_tokenizer(name))


@pytest.mark.parametrize("load", [load_tokenizer, auto_tokenizer])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"model": 3}', b"\xff", None])
def test_a_tokenizer_that_cannot_be_loaded_is_named(load: Any, content: bytes | None, tmp_path: Path) -> None:
    name = saved(tiny.tokenizer(), tmp_path, "qwen3")
    if content is None:
        (tmp_path / "tokenizer.json").unlink()
    else:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match="has no tokenizer that can be loaded"):
        load(name)


def test_a_missing_directory_is_named() -> None:
    with pytest.raises(ModelError, match="The model directory ./nowhere does not exist"):
        load_tokenizer("./nowhere")


GENERATED = 24


@pytest.mark.parametrize("eos", [None, 2, [2], [7, 2, 9], list(range(3, 40))])
def test_generation_stops_at_the_first_stop_id_and_nowhere_else(eos: int | list[int] | None) -> None:
    """Judged by transformers: without stops, the model's greedy tokens; with them, the same up to the first stop."""
    model, tokenizer = tiny.model(), tiny.tokenizer()
    prompt = torch.tensor([[40, 41, 42]])
    settings = {"max_new_tokens": GENERATED, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    model.generation_config = GenerationConfig(pad_token_id=0)
    assert stop_ids(tokenizer, model.generation_config) == ()
    endless = model.generate(prompt, **settings)[0, 3:].tolist()
    assert len(endless) == GENERATED
    model.generation_config.eos_token_id = eos
    stops = stop_ids(tokenizer, model.generation_config)
    ends = [place for place, token in enumerate(endless) if token in stops]
    assert model.generate(prompt, **settings)[0, 3:].tolist() == endless[: ends[0] + 1 if ends else None]


def test_the_tokenizers_end_of_sequence_comes_first_where_generation_stops_at_it() -> None:
    tokenizer = tiny.tokenizer()
    assert tokenizer.eos_token_id == 2
    assert stop_ids(tokenizer, GenerationConfig(eos_token_id=[7, 2, 9, 7])) == (2, 7, 9)
    assert stop_ids(tokenizer, GenerationConfig(eos_token_id=[9, 7])) == (9, 7)
    assert stop_ids(tokenizer, None) == (2,)


@pytest.mark.parametrize("eos", [None, 2, [7, 2]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_the_files_of_a_model_tell_where_the_loaded_model_stops(
    eos: int | list[int] | None, file: str, tmp_path: Path
) -> None:
    model = tiny.model(eos_token_id=eos if file == "config.json" else 5)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    if file == "config.json":
        (tmp_path / "generation_config.json").unlink()
    loaded = load(str(tmp_path))
    assert stop_ids_of_files(str(tmp_path), loaded.tokenizer) == loaded.stops
    assert set(loaded.stops) == ({eos} if isinstance(eos, int) else set(eos or ()))
