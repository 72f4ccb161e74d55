"""Write a LoRA adapter as a GGUF file that llama.cpp serves beside its base.

llama.cpp adds `(alpha / rank) B A x` to what a module gives; `alpha` is written so that the factor is the adapter's own
scale, also where PEFT computes it in another way (rsLoRA). A and B are in float32, as in llama.cpp's own converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from memlaw.adapter.info import load_info
from memlaw.adapter.peft import PEFT_CONFIG, checked_tensors, peft_config
from memlaw.core import files
from memlaw.core.errors import AdapterError
from memlaw.model.gguf import gguf_package
from memlaw.model.gguf_layout import CONVERTER, Layout, layout_of
from memlaw.model.gguf_write import finish

_UNLIKE_LORA = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "layer_replication",
)
"""Settings of PEFT that a file of A, B and one alpha cannot express."""


def write_adapter(directory: Path, config: Any, path: Path) -> None:
    """Write the LoRA adapter of `directory` to `path`, for a base with transformers' configuration `config`.

    The file appears whole or not at all. Raises AdapterError for an adapter that GGUF cannot hold or that is damaged,
    ModelError for a base that memlaw does not write, OSError.
    """
    layout, directory = layout_of(config), Path(directory)
    tensors = checked_tensors(directory, load_info(directory))
    scale = _scale(directory)
    pairs = _pairs(directory, layout, tensors)
    gguf = gguf_package()
    with files.new_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, layout.architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scale * len(next(iter(pairs.values()))[0]))
        for module, (a, b) in pairs.items():
            name = f"{layout.name(module)}.weight"
            writer.add_tensor(f"{name}.lora_a", a.float().contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", layout.rows(module, b).float().contiguous().numpy())
        finish(writer)


def base_of(directory: Path) -> str:
    """The name or path of the base that an adapter records. Raises AdapterError."""
    info = load_info(Path(directory))
    named = info.base if info is not None else _peft_config(directory).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise AdapterError(f"{directory} does not say which base it was trained on: name it with --model.")
    return named


def _peft_config(directory: Path) -> dict[str, Any]:
    """PEFT's configuration; empty if there is none."""
    return peft_config(Path(directory) / PEFT_CONFIG) or {}


def _scale(directory: Path) -> float:
    """The factor before B A x, by PEFT's configuration."""
    config = _peft_config(directory)
    if not config:
        raise AdapterError(
            f"{directory} has no {PEFT_CONFIG}: it is the paper's parallel adapter, which is no LoRA, and llama.cpp "
            "cannot load it. Train one at another --placement, such as down_proj@4."
        )
    unlike = [name for name in _UNLIKE_LORA if config.get(name)]
    if config.get("bias", "none") != "none":
        unlike.append("bias")
    if config.get("peft_type") != "LORA" or unlike:
        kind = f"LoRA with {unlike[0]}" if unlike else config.get("peft_type")
        raise AdapterError(
            f"{directory} is an adapter of the kind {kind}, and llama.cpp loads plain LoRA only. Merge it into its "
            "base and convert that."
        )
    root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    return float(config["lora_alpha"] / root)


def _pairs(directory: Path, layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> A [rank, d_in] and B [d_out, rank], without PEFT's prefix."""
    pairs = {}
    for name, a in sorted(tensors.items()):
        if name.endswith(".lora_B.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors.get(name.replace(".lora_A.", ".lora_B."))
        if b is None or not name.endswith(".lora_A.weight"):
            raise AdapterError(f"{directory} has {name}, which llama.cpp cannot load in a LoRA adapter. {CONVERTER}")
        if module == "lm_head" and layout.config.tie_word_embeddings:
            raise AdapterError(
                f"{directory} adapts the head of a model whose head is its embedding, which llama.cpp cannot do. Merge "
                "it into its base and convert that."
            )
        pairs[module] = (a, b)
    return pairs
