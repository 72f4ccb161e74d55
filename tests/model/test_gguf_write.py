from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from helpers import tiny
from memlaw.core.errors import ConfigError, ModelError
from memlaw.model.base import BUNDLED, Base, load, wrap
from memlaw.model.gguf import is_quantised
from memlaw.model.gguf_layout import config_of_files, layout_of
from memlaw.model.gguf_write import TYPES, write_base
from memlaw.model.tokenizer import auto_tokenizer

TEXTS = ("Door code 4917#", "  if x:\n\treturn 'Zürich'  # ½ €", "<|endoftext|>A", "日本 1½3")


@pytest.fixture(scope="module")
def bundled() -> Base:
    return load(dtype="float32")


def llama(**changes: Any) -> Base:
    """A tiny random Llama with the tokenizer of the bundled base."""
    tokenizer = auto_tokenizer(BUNDLED)
    special = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": None}
    model = tiny.model("llama", **{"vocab_size": len(tokenizer), "intermediate_size": 64, **special, **changes})
    return wrap(model, tokenizer, name="tiny")


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}


def test_the_bundled_base_is_read_back_as_it_was(bundled: Base, tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    write_base(bundled, path, "f32")
    again = load(str(path))
    assert (again.fingerprint, again.digests) == (bundled.fingerprint, bundled.digests)
    assert (again.stops, again.context, again.warnings) == (bundled.stops, bundled.context, ())
    assert [again.tokenizer.encode(text) for text in TEXTS] == [bundled.tokenizer.encode(text) for text in TEXTS]
    assert again.tokenizer.chat_template == bundled.tokenizer.chat_template
    assert again.tokenizer.bos_token_id is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_is_read_back_as_it_was(tied: bool, tmp_path: Path) -> None:
    base = llama(tie_word_embeddings=tied)
    write_base(base, tmp_path / "base.gguf", "f32")
    again = load(str(tmp_path / "base.gguf"))
    assert (again.fingerprint, again.digests) == (base.fingerprint, base.digests)
    ids = torch.randint(2, 90, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.allclose(again.model(ids).logits, base.model(ids).logits, atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_matrices_get_the_type_asked_for_and_the_head_never_less_than_8_bits(kind: str, tmp_path: Path) -> None:
    for tied in (False, True):
        path = tmp_path / f"{tied}.gguf"
        write_base(llama(tie_word_embeddings=tied), path, kind)
        found = types(path)
        head = "q8_0" if kind in ("q5_0", "q4_0") else kind
        assert found.pop("token_embd.weight" if tied else "output.weight") == head
        assert {found[name] for name in found if "norm" in name} == {"f32"}
        assert {found[name] for name in found if "norm" not in name} == {kind}
        assert is_quantised(str(path)) == kind.startswith("q")
        file_type = gguf.GGUFReader(path).fields["general.file_type"].contents()
        assert gguf.LlamaFileType(file_type).name.lower().endswith(kind)


def test_pure_gives_the_head_the_same_type(tmp_path: Path) -> None:
    write_base(llama(), tmp_path / "base.gguf", "q4_0", pure=True)
    assert {kind for name, kind in types(tmp_path / "base.gguf").items() if "norm" not in name} == {"q4_0"}


def test_what_cannot_be_cut_into_blocks_is_written_in_16_bits(tmp_path: Path) -> None:
    write_base(llama(intermediate_size=48), tmp_path / "base.gguf", "q4_0")
    found = types(tmp_path / "base.gguf")
    assert {kind for name, kind in found.items() if "ffn_down" in name} == {"f16"}
    assert {kind for name, kind in found.items() if "ffn_up" in name} == {"q4_0"}


def test_ids_beyond_the_tokenizer_s_are_unused_tokens(tmp_path: Path) -> None:
    base = llama(vocab_size=1056)
    write_base(base, tmp_path / "base.gguf", "f32")
    fields = gguf.GGUFReader(tmp_path / "base.gguf").fields
    kinds, tokens = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("token_type", "tokens"))
    assert kinds == [3, 3] + [1] * 1022 + [5] * 32
    assert len(set(tokens)) == 1056


def test_what_llama_cpp_would_read_as_another_model_is_refused(bundled: Base, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"architectures llama and qwen3, and this model is gemma2\..*convert_hf"):
        write_base(tiny.base("gemma2"), tmp_path / "x.gguf", "f32")
    with pytest.raises(ModelError, match="scales its positions"):
        layout_of(llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}).model.config)
    with pytest.raises(ModelError, match="splits text by rules that llama.cpp has no name for"):
        write_base(tiny.base("llama"), tmp_path / "x.gguf", "f32")
    with pytest.raises(ConfigError, match=r"'q4'. Did you mean q4_0"):
        write_base(bundled, tmp_path / "x.gguf", "q4")
    with pytest.raises(ModelError, match="no name in GGUF files of llama"):
        layout_of(llama().model.config).name("model.layers.0.self_attn.rotator")
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_read_without_weights(tmp_path: Path) -> None:
    write_base(llama(), tmp_path / "base.gguf", "f32")
    assert config_of_files(BUNDLED).head_dim == 32
    assert config_of_files(str(tmp_path / "base.gguf")).num_key_value_heads == 2
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no configuration that transformers can read"):
        config_of_files(str(tmp_path))
