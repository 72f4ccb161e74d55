"""Small real things for tests: random models of every family, a real tokenizer, facts made of tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.data import Reading
from memlaw.data.load import Facts, load_memory_set
from memlaw.model.base import Base, wrap
from memlaw.model.reach import reachable_ids

VOCABULARY = 96

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_NO_GROUPS = {k: v for k, v in _SMALL.items() if k not in ("num_key_value_heads", "head_dim")}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SMALL),
    "llama-tied": ("LlamaConfig", {**_SMALL, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {k: v for k, v in _SMALL.items() if k != "head_dim"}),
    "qwen3": ("Qwen3Config", _SMALL),
    "mistral-sliding": ("MistralConfig", {**_SMALL, "sliding_window": 5}),
    "gemma2": ("Gemma2Config", {**_SMALL, "sliding_window": 5, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {**_SMALL, "sliding_window": 5, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", {k: v for k, v in _SMALL.items() if k != "head_dim"}),
    "olmo2": ("Olmo2Config", {k: v for k, v in _SMALL.items() if k != "head_dim"}),
    "smollm3": ("SmolLM3Config", {k: v for k, v in _SMALL.items() if k != "head_dim"}),
    "gpt-neox": ("GPTNeoXConfig", _NO_GROUPS),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 0},
    ),
}  # fmt: skip


def model(family: str = "qwen3", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model of a family in evaluation mode. Its weights are larger than usual, so that layers, masks and
    rotary embeddings all affect the output, and every token can be reached."""
    name, settings = FAMILIES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**settings, **changes})
    built = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        built.get_output_embeddings().weight.mul_(8.0)  # otherwise no hidden state of this size gives any token p > 1/2
    return built


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: printable ASCII except the last few, with pad, bos and eos; nothing is added."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    for code in range(32, 32 + VOCABULARY - 4):
        vocabulary[chr(code)] = len(vocabulary)
    vocabulary["<unk>"] = len(vocabulary)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def base(family: str = "qwen3", **changes: Any) -> Base:
    return wrap(model(family, **changes), tokenizer(), name=f"tiny-{family}")


def memory_set(source: Facts, on: Base | None = None, **reading: Any) -> MemorySet:
    """The facts of `source` for a base, by default a tiny one; `reading` are fields of Reading."""
    on = on or base()
    return load_memory_set(source, on.tokenizer, partial(reachable_ids, on), Reading(**reading))


def facts(lengths: list[tuple[int, int]], *, seed: int = 0) -> tuple[EncodedFact, ...]:
    """Random facts, one for each (prompt tokens, target tokens)."""
    stream = torch.Generator().manual_seed(seed)
    return tuple(
        EncodedFact(f"f{i}", tuple(torch.randint(3, VOCABULARY, (p + t,), generator=stream).tolist()), p)
        for i, (p, t) in enumerate(lengths)
    )


def seeing(*, seed: int = 0) -> Any:
    """A random Llava: its vision tower has modules of the same names as its language model."""
    torch.manual_seed(seed)
    tower = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=8
    )
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=tower, text_config=transformers.LlamaConfig(**_SMALL))
    ).eval()


def mixture(kind: str, *, seed: int = 0) -> Any:
    """A random mixture of experts: Mixtral, Qwen2Moe (with a gate of width 1) or Phimoe (its router is linear)."""
    torch.manual_seed(seed)
    sizes = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 16}
    shared = {"shared_expert_intermediate_size": 16, "num_experts_per_tok": 2}
    settings = {name: value for name, value in _SMALL.items() if name != "head_dim" or kind == "Mixtral"}
    config = getattr(transformers, f"{kind}Config")(**settings, **sizes, **shared)
    return transformers.AutoModelForCausalLM.from_config(config).eval()
