"""Models in the true shapes of Qwen3-8B and Llama-3.1-8B, with random weights, made on the device in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from gpu.section import Section
from memlaw.model.base import Base, fingerprint

CONTEXT = 32_768

SHAPES: Mapping[str, Any] = {
    "qwen3-8b": (
        Qwen3Config,
        {
            "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        },
    ),
    "llama-3.1-8b": (
        LlamaConfig,
        {
            "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8,
        },
    ),
}  # fmt: skip

SMALL = {
    "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip


def random_base(name: str, section: Section) -> Base:
    """The weights are those that transformers starts a training from: N(0, 0.02), norms 1."""
    kind, shape = SHAPES[name]
    sizes = SMALL if section.small else shape
    config = kind(**sizes, tie_word_embeddings=False, max_position_embeddings=CONTEXT)
    torch.manual_seed(0)
    with torch.device(section.device):
        model = AutoModelForCausalLM.from_config(config, dtype=section.dtype)
    model = model.to(section.device).eval().requires_grad_(False)
    assert model.dtype == section.dtype
    dtype = str(section.dtype).removeprefix("torch.")
    return Base(model, None, name, fingerprint(model), "none", dtype, section.device, CONTEXT)


def flops_of_suffix(base: Base, first: int, tokens: int) -> float:
    """Multiplications and additions of one forward and backward pass of `tokens` through what training repeats.

    The products with the frozen weights above layer `first`, and with the head, each once forward and once backward;
    attention is left out.
    """
    layers = base.model.model.layers[first + 1 :]
    weights = sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() == 2)
    return 4.0 * tokens * (weights + base.model.lm_head.weight.numel())
