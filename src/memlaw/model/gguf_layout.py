"""How llama.cpp names a model's weights and orders their rows, for the architectures that memlaw writes as GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from memlaw.core.errors import ModelError, first_line
from memlaw.model.files import is_gguf, source_of
from memlaw.model.gguf import config_of_gguf, gguf_package

CONVERTER = "Convert it with llama.cpp's own convert_hf_to_gguf.py, and adapters with convert_lora_to_gguf.py."

_ROTATES_NEIGHBOURS = {"llama": True, "qwen3": False}
"""Architecture -> whether llama.cpp rotates neighbouring rows of a head there, instead of rows half a head apart."""


@dataclass(frozen=True)
class Layout:
    """Where llama.cpp expects the weights of a model; made by `layout_of`."""

    config: Any
    """transformers' configuration of the model."""

    @property
    def architecture(self) -> str:
        return str(self.config.model_type)

    @cached_property
    def _names(self) -> Any:
        gguf = gguf_package()
        architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        return gguf.get_tensor_name_map(architecture, self.config.num_hidden_layers)

    def name(self, module: str) -> str:
        """llama.cpp's name of a module: `blk.4.ffn_down` of `model.layers.4.mlp.down_proj`. Raises ModelError."""
        found = self._names.get_name(module)
        if found is None:
            raise ModelError(f"{module} has no name in GGUF files of {self.architecture} models. {CONVERTER}")
        return str(found)

    def rows(self, module: str, values: Tensor) -> Tensor:
        """`values` [d_out, ...] of a module with its rows in llama.cpp's order."""
        heads = {"q_proj": self.config.num_attention_heads, "k_proj": self.config.num_key_value_heads}
        count = heads.get(module.rpartition(".")[2])
        if count is None or not _ROTATES_NEIGHBOURS[self.architecture]:
            return values
        return values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def layout_of(config: Any) -> Layout:
    """The layout of a model with this configuration. Raises ModelError for one that memlaw does not write."""
    if config.model_type not in _ROTATES_NEIGHBOURS:
        raise ModelError(
            f"memlaw writes GGUF files of the architectures {' and '.join(_ROTATES_NEIGHBOURS)}, and this model is "
            f"{config.model_type}. {CONVERTER}"
        )
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind != "default":
        raise ModelError(f"This model scales its positions ({kind}), which memlaw does not write as GGUF. {CONVERTER}")
    return Layout(config)


def config_of_files(name: str) -> Any:
    """transformers' configuration of a Hub id, a directory, a GGUF file or `memlaw/base`. Raises ModelError."""
    import transformers

    source = source_of(name)
    if is_gguf(source):
        return config_of_gguf(source)
    try:
        return transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name} has no configuration that transformers can read ({first_line(error)}). Check the name, or give "
            "the directory of the base with --model."
        ) from error
