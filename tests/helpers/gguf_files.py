"""GGUF files as llama.cpp's converter writes them: metadata, the tokenizer, and the weights under other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|endoftext|>' }}{% endfor %}"


def write_gguf(
    path: Path, model: Any, tokenizer: Any, *, packed: bool = False, rule: str = "smollm", **metadata: Any
) -> Path:
    """Write a Llama; `packed` quantises its matrices to 8 bits, whose widths must be multiples of 32.

    `rule` names how text is split. `metadata` are further keys: `eot_token_id=1` is tokenizer.ggml.eot_token_id, and
    `architecture` is stated instead of the model's own.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    _add_sizes(writer, config)
    _add_tokenizer(writer, tokenizer, rule)
    writer.add_eos_token_id(config.eos_token_id)
    for key, value in metadata.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        stem, _, last = name.rpartition(".")
        values = weight.detach().float()
        if stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            values = _interleaved(values, heads)
        _add_weight(writer, f"{names.get_name(stem)}.{last}", values.numpy(), packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, rule: str) -> None:
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ids = {id_: token for token, id_ in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list([ids[id_] for id_ in range(len(ids))])
    writer.add_token_types([3 if id_ in special else 1 for id_ in range(len(ids))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_chat_template(TEMPLATE)


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring rows of a head, transformers rows that are half a head apart."""
    return weight.view(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def _add_weight(writer: gguf.GGUFWriter, name: str, values: np.ndarray, packed: bool) -> None:
    if packed and values.ndim == 2:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)
