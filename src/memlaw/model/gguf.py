"""One GGUF file as a frozen base: transformers dequantises its weights and rebuilds its configuration and tokenizer.

What it loads is an ordinary float model, and so is its fingerprint: that of the values which the quantised file stands
for, not of the model it was made from. Every function takes a path that `files.source_of` accepted, and raises
ModelError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memlaw.core.errors import ModelError, first_line
from memlaw.model.outline import Outline

_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Keys of the ids at which llama.cpp stops: end of text, of a turn, of a message."""

_FLOATS = (0, 1, 32)
"""Types of files (llama.cpp's `llama_ftype`) whose weights are float32, float16 and bfloat16."""

_NAMED_LIKE_GPT2 = ("default", "gpt-2")
"""Pre-tokenizers that split text as transformers does where it knows no other rule."""


def model_of_gguf(path: str) -> Any:
    """The causal language model in float32. It stops where llama.cpp does, if the file says so."""
    import torch

    transformers, config = _transformers(), config_of_gguf(path)
    with _reading(path):
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            **_where(path),
            config=config,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    if absent := sorted(loaded["missing_keys"]):
        raise ModelError(
            f"{path} lacks {len(absent)} weights of its architecture, such as {absent[0]}, and transformers would fill "
            "them with random numbers. Fetch it again, or load the original weights."
        )
    model.config.name_or_path = path  # otherwise the folder's, which may hold several models
    if stops := stops_of_gguf(path):
        model.generation_config.eos_token_id = list(stops) if len(stops) > 1 else stops[0]
    return model


def config_of_gguf(path: str) -> Any:
    """The configuration of the model, from the file's metadata."""
    with _reading(path):
        config = _transformers().AutoConfig.from_pretrained(**_where(path))
    if config.model_type == "qwen3":  # transformers passes over the width of a head, and takes 128
        config.head_dim = _metadata(path).get("qwen3.attention.key_length", config.head_dim)
    return config


def tokenizer_of_gguf(path: str) -> Any:
    """The tokenizer that the file describes, with its chat template."""
    with _reading(path):
        tokenizer = _transformers().AutoTokenizer.from_pretrained(**_where(path))
    if _pre_tokenizer(path) == "smollm":  # transformers has no rule for it: llama.cpp takes digits apart first
        from tokenizers import pre_tokenizers

        backend = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return tokenizer


def cautions_of_gguf(path: str) -> tuple[str, ...]:
    """What may differ from the model that llama.cpp serves from this file, one sentence each."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    rule = _pre_tokenizer(path)
    if rule is None or rule in (*GGUF_PRE_TOKENIZER_SPLITS, *_NAMED_LIKE_GPT2, "smollm"):
        return ()
    return (
        f"{path} splits text by the rule {rule!r}, which transformers does not know: it splits as GPT-2 does, so some "
        "texts may become other tokens than in llama.cpp. Save the original tokenizer with the weights to be certain.",
    )


def stops_of_gguf(path: str) -> tuple[int, ...]:
    """The ids at which llama.cpp stops, those that the file names, its end of text first."""
    metadata = _metadata(path)
    named = (metadata.get(f"tokenizer.ggml.{key}") for key in _STOPS)
    return tuple(dict.fromkeys(id_ for id_ in named if id_ is not None))


def is_quantised(path: str) -> bool:
    """Whether most weights of the file are integers in blocks, by what it says of itself: llama.cpp then rounds the
    inputs of their products to 8 bits."""
    return _metadata(path).get("general.file_type", _FLOATS[0]) not in _FLOATS


def outline_of_gguf(path: str) -> Outline:
    """The outline of the model, from the file's metadata: no weights are read, but torch is loaded."""
    import torch

    from memlaw.model.outline_from_module import outline_of_model

    config = config_of_gguf(path)
    with _reading(path), torch.device("meta"):  # the modules without memory for their weights
        empty = _transformers().AutoModelForCausalLM.from_config(config)
    return outline_of_model(empty, name=path)


def _transformers() -> Any:
    """transformers, where it can read GGUF files."""
    import transformers

    try:
        import gguf  # noqa: F401
        from transformers.integrations.gguf import read_gguf_metadata  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"GGUF files need packages that are not installed ({first_line(error)}). Install them with "
            "`pip install 'memlaw[gguf]'`."
        ) from error
    return transformers


def gguf_package() -> Any:
    """The package `gguf`, which names and packs what a file holds. Raises ModelError where it is not installed."""
    _transformers()
    import gguf

    return gguf


def _where(path: str) -> dict[str, str]:
    """The arguments by which transformers finds the file."""
    return {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}


def _metadata(path: str) -> Mapping[str, Any]:
    """Keys and values of the header; of lists of texts only their lengths."""
    _transformers()
    from transformers.integrations.gguf import read_gguf_metadata

    with _reading(path):
        metadata: Mapping[str, Any] = read_gguf_metadata(path)[0]
    return metadata


def _pre_tokenizer(path: str) -> str | None:
    """The name of the rule that splits text before byte-pair encoding; None for vocabularies that have none."""
    metadata = _metadata(path)
    return metadata.get("tokenizer.ggml.pre") if metadata.get("tokenizer.ggml.model") == "gpt2" else None


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns what reading a file raises into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # a damaged file raises whatever its bytes happen to break
        if "architecture" in str(error) or "Unrecognized configuration class" in str(error):
            raise ModelError(
                f"{path} holds a model that transformers cannot read as a causal language model "
                f"({first_line(error)}). Load the original weights in Hugging Face format instead."
            ) from error
        raise ModelError(
            f"{path} cannot be read ({first_line(error)}): damaged, cut short, or of a kind that transformers does not "
            "know. Compare its size with the original and fetch it again, or load the original weights."
        ) from error
