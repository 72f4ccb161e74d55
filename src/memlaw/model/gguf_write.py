"""Write a base as a GGUF file that llama.cpp serves, with the names and types that llama.cpp's own tools choose.

Vectors stay in float32. Matrices get the type asked for, with two exceptions. Beside weights of 4 or 5 bits, the head
(the embedding, where that is the head) gets q8_0, unless `pure`. So `llama-quantize` chooses without `--pure`, unless
the width is a multiple of 256: it takes q6_K then, which has fewer bits. And a matrix whose width is no multiple of 32
is written in float16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from memlaw.core import files
from memlaw.core.errors import ConfigError, ModelError, suggest
from memlaw.model.base import Base
from memlaw.model.gguf import gguf_package
from memlaw.model.gguf_layout import CONVERTER, Layout, layout_of

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0")
"""Types of weights that can be written, as llama.cpp names them."""

_COMPOSED = {"type": "NFC"}
"""The one normalizer that does not matter: llama.cpp skips it, and text is composed unless something took it apart."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens


def write_base(base: Base, path: Path, kind: str, *, pure: bool = False) -> None:
    """Write weights, configuration and tokenizer to `path`, in the type `kind`; the file appears whole or not at all.

    `pure` gives the head this type too.

    Raises ConfigError for an unknown type, ModelError for a model or tokenizer that memlaw does not write, OSError.
    """
    check_type(kind)
    gguf, layout = gguf_package(), layout_of(base.model.config)
    with files.new_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, layout.architecture)
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(base.name)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_sizes(writer, layout.config)
        _add_tokenizer(writer, base)
        tied = bool(layout.config.tie_word_embeddings)
        head_kind = "q8_0" if kind in ("q5_0", "q4_0") and not pure else kind
        for name, weight in base.model.state_dict().items():
            is_head = name == ("model.embed_tokens.weight" if tied else "lm_head.weight")
            if not (tied and name == "lm_head.weight"):  # where a file has no head, llama.cpp takes the embedding
                _add_weight(writer, layout, name, weight, head_kind if is_head else kind)
        finish(writer)


def check_type(kind: str) -> None:
    """Raise ConfigError for a type of weights that is not one of TYPES."""
    if kind not in TYPES:
        raise ConfigError(f"Unknown type of weights {kind!r}. {suggest(kind, TYPES)}Known: {', '.join(TYPES)}.")


def finish(writer: Any) -> None:
    """Write what was added to a gguf.GGUFWriter, and close its file."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_sizes(writer: Any, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_weight(writer: Any, layout: Layout, name: str, weight: Tensor, kind: str) -> None:
    gguf = gguf_package()
    module, _, last = name.rpartition(".")
    given = layout.name(module)
    values = layout.rows(module, weight.detach().float().cpu()).numpy()
    chosen = gguf.GGMLQuantizationType[_type_of(values.shape, kind).upper()]
    writer.add_tensor(f"{given}.{last}", gguf.quants.quantize(values, chosen), raw_dtype=chosen)


def _type_of(shape: tuple[int, ...], kind: str) -> str:
    if len(shape) == 1:
        return "f32"
    return "f16" if kind.startswith("q") and shape[-1] % 32 else kind


def _add_tokenizer(writer: Any, base: Base) -> None:
    tokenizer = base.tokenizer
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if hasattr(tokenizer, "backend_tokenizer") else {}
    rule = _splitting_rule(rules)
    if rule is None or not base.stops:
        what = "splits text by rules that llama.cpp has no name for" if rule is None else "names no end of text"
        raise ModelError(f"The tokenizer of {base.name} {what}, so memlaw does not write it as GGUF. {CONVERTER}")
    tokens, types = _vocabulary(tokenizer, base.model.config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = rules["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_eos_token_id(base.stops[0])
    if len(base.stops) > 1:
        writer.add_eot_token_id(base.stops[1])
    for add, id_ in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if id_ is not None:
            add(id_)
    begins = tokenizer.encode("", add_special_tokens=True, verbose=False)[:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str) and tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _vocabulary(tokenizer: Any, size: int) -> tuple[list[str], list[int]]:
    """Token and llama.cpp's type of each id; a model may have more ids than its tokenizer."""
    tokens, types = [f"[PAD{id_}]" for id_ in range(size)], [_UNUSED] * size
    for token, id_ in tokenizer.get_vocab().items():
        tokens[id_], types[id_] = token, _NORMAL
    for id_, added in tokenizer.added_tokens_decoder.items():
        types[id_] = _CONTROL if added.special else _USER_DEFINED
    return tokens, types


def _splitting_rule(rules: dict[str, Any]) -> str | None:
    """llama.cpp's name of the rule by which a byte-level tokenizer splits text; None for any other tokenizer."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    before = rules.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if rules.get("model", {}).get("type") != "BPE" or steps[-1].get("type") != "ByteLevel":
        return None
    if steps[-1].get("add_prefix_space") or (rules.get("normalizer") or _COMPOSED) != _COMPOSED:
        return None
    first = [{key: step.get(key) for key in ("type", "pattern", "individual_digits")} for step in steps[:-1]]
    if steps[-1].get("use_regex"):
        digits = {"type": "Digits", "pattern": None, "individual_digits": True}
        return {"[]": "gpt-2", str([digits]): "smollm"}.get(str(first))
    named = {split: name for name, split in reversed(GGUF_PRE_TOKENIZER_SPLITS.items())}
    if len(first) != 1 or first[0]["type"] != "Split":
        return None
    return named.get(first[0]["pattern"].get("Regex"))
