"""Load a frozen base model with its tokenizer, check that it can serve, and fingerprint it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from memlaw.core.errors import ModelError, first_line
from memlaw.model.files import BUNDLED, is_gguf, source_of
from memlaw.model.gguf import cautions_of_gguf, model_of_gguf
from memlaw.model.parts import decoder_layers
from memlaw.model.sketch import rounded_to, sketch
from memlaw.model.tokenizer import auto_tokenizer, stop_ids, tokenizer_fingerprint

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

TIED = (
    "The head of {name} is its input embedding. Some tokens may then stay below p = 1/2 at every hidden state, so no "
    "adapter of any rank is certain to recall them; `memlaw.model.reach.reach_bounds` tells which they are."
)
"""The warning for a tied head."""


@dataclass(frozen=True)
class Base:
    """A frozen causal language model, its tokenizer, and what identifies them."""

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str
    """SHA-256 over the weights' names, shapes and values rounded to bfloat16. Compare two with `same_base`."""
    tokenizer_fingerprint: str
    dtype: str
    device: str
    context: int | None
    """Positions the model was built for; None where its configuration does not say."""
    warnings: tuple[str, ...] = ()
    """Properties of this base that may keep facts from being recalled, one sentence each."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """What else identifies it (`digests`): adapters record it, cells do not."""
    served_as: str | None = None
    """The precision whose weights stand for those that were loaded (`memlaw.model.rounding`); None: they are as they
    were. Fingerprint and digests are those of the weights that were loaded."""

    @property
    def held_in(self) -> str:
        """What decides, beside the fingerprint, what the model computes: part of the key of everything that is kept."""
        return self.dtype if self.served_as is None else f"{self.served_as} in {self.dtype}"

    @property
    def judged_in(self) -> str:
        """The precision in which recall is judged on this base."""
        return self.served_as or self.dtype

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(decoder_layers(self.model))

    @property
    def stops(self) -> tuple[int, ...]:
        """The ids at which the model's own `generate` stops, the tokenizer's eos first if it is one of them."""
        return stop_ids(self.tokenizer, getattr(self.model, "generation_config", None))


def load(name: str = BUNDLED, *, dtype: str = "auto", device: str = "auto") -> Base:
    """Load a Hub id, a local directory, a GGUF file or `memlaw/base`, frozen and in evaluation mode.

    `dtype="auto"` is float32 if the weights fit in half of the free memory (recall is judged most reliably there), else
    bfloat16; a quantised checkpoint keeps its own dtype, and the weights of a GGUF file are dequantised. Only
    safetensors and GGUF are read, and no code from the repository runs. Raises ModelError.
    """
    import transformers

    source = source_of(name)
    if dtype not in ("auto", *DTYPES):
        raise ModelError(f"Unknown dtype {dtype!r}; known: auto, {', '.join(DTYPES)}.")
    where = _usable_device(device)
    tokenizer = auto_tokenizer(name)
    if is_gguf(source):
        model = model_of_gguf(source)
        base = wrap(model.to(device=where, dtype=_dtype(dtype, model, where)), tokenizer, name=name)
        return replace(base, warnings=base.warnings + cautions_of_gguf(source))
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True)
    except ImportError as error:  # a quantised checkpoint needs the library that packed it
        raise ModelError(
            f"{name} needs a library that is not installed ({first_line(error)}). Install it, or load weights that are "
            "not quantised."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{name} cannot be loaded as a causal language model from safetensors ({first_line(error)}). memlaw never "
            "unpickles weights: convert them with `model.save_pretrained(...)`, or check the name."
        ) from error
    if getattr(model, "is_quantized", False):
        return wrap(_quantised_on(where, model, name, dtype), tokenizer, name=name)
    return wrap(model.to(device=where, dtype=_dtype(dtype, model, where)), tokenizer, name=name)


def _quantised_on(device: str, model: Any, name: str, dtype: str) -> Any:
    """A quantised model on `device`. Its library has placed it already, and some libraries cannot move it again."""
    if dtype != "auto":
        raise ModelError(
            f"The weights of {name} are quantised, and packed weights cannot be converted to {dtype}. Leave the dtype "
            "at auto: the layers compute in the dtype of the quantisation config."
        )
    if model.device.type == torch.device(device).type:
        return model
    try:
        return model.to(device)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"The quantised weights of {name} cannot be moved to {device} ({first_line(error)}). Use the device that "
            "its library supports, or weights that are not quantised."
        ) from error


def wrap(model: Any, tokenizer: Any, *, name: str | None = None) -> Base:
    """Make a `Base` of a model and tokenizer in memory, by default under the name it was loaded from.

    The model is not changed. Raises ModelError for a model that cannot serve: its tokenizer has more ids than it has
    rows, its head is quantised, or bitsandbytes computes it on a CPU.
    """
    name = name or model.config.name_or_path or type(model).__name__
    if getattr(model, "quantization_method", None) == "bitsandbytes" and model.device.type == "cpu":
        raise ModelError(
            f"{name} is packed by bitsandbytes, which on a CPU may compute in bfloat16 and without gradients, so "
            "training is impossible and no certificate would hold. Use a GPU, or weights that are not quantised."
        )
    embedding, head = model.get_input_embeddings(), getattr(model.get_output_embeddings(), "weight", None)
    _check_vocabulary(tokenizer, name, embedding.num_embeddings, head)
    config = model.config.get_text_config()
    return Base(
        model=model,
        tokenizer=tokenizer,
        name=name,
        fingerprint=fingerprint(model),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        dtype=str(model.dtype).removeprefix("torch."),  # of the weights that are not packed
        device=str(model.device),
        context=getattr(config, "max_position_embeddings", None),
        warnings=(TIED.format(name=name),) if head is embedding.weight else (),
        digests=digests(model),
    )


def _check_vocabulary(tokenizer: Any, name: str, rows: int, head: Tensor | None) -> None:
    """Refuse a tokenizer with more ids than embeddings or logits, and a head whose rows cannot be read."""
    ids = 1 + max(tokenizer.get_vocab().values())
    if ids > rows:
        raise ModelError(
            f"The tokenizer of {name} has ids up to {ids - 1}, but the embedding has {rows} rows, so the model cannot "
            f"read some texts. Use the tokenizer it was trained with, or `model.resize_token_embeddings({ids})`."
        )
    if head is not None and not head.is_floating_point():
        raise ModelError(
            f"The head of {name} is quantised ({head.dtype}), and memlaw reads its rows to compute losses. Quantise "
            'the model without its head: `llm_int8_skip_modules=["lm_head"]` in a BitsAndBytesConfig.'
        )
    if head is not None and ids > len(head):
        raise ModelError(
            f"The tokenizer of {name} has ids up to {ids - 1}, but the head has {len(head)} rows, so the model cannot "
            "emit some texts. The vocabulary was resized in one place only: use "
            f"`model.resize_token_embeddings({ids})`, which resizes both."
        )


def _usable_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The device {device!r} cannot be used here ({first_line(error)}). Choose cpu, or auto."
        ) from error
    return device


def _dtype(dtype: str, model: nn.Module, device: str) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    if not device.startswith("cuda"):
        return torch.float32
    needed = 4 * sum(p.numel() for p in model.parameters())
    free, _ = torch.cuda.mem_get_info()
    return torch.float32 if needed <= free / 2 else torch.bfloat16


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of the weights; of large tensors, at least 65,536 evenly spaced values.

    Values are rounded to bfloat16 first, so that a checkpoint has one fingerprint in float32 and bfloat16, and in
    float16 too if it was saved in 16 bits (apart from values that float16 cannot hold). Float32 weights cast to float16
    are rounded twice: `same_base` knows both. The packed bytes of a quantised weight survive the rounding unchanged,
    and the scales that unpack them are included.
    """
    hasher = hashlib.sha256()
    for name, tensor in _weights(model):
        hasher.update(_layout(name, tensor))
        hasher.update(_rounded(_sample(tensor)))
    return hasher.hexdigest()


def digests(model: Any) -> dict[str, str]:
    """What identifies a base beside its fingerprint, to be recorded as `base_digests` with an adapter.

    `float16`: the fingerprint it has once cast to float16. `layout`: SHA-256 over names and shapes alone.
    `packing`: the quantisation method, only for a quantised model. `sketch`: some weights of every tensor, which tell
    the same weights in another precision (`other_precision`).
    """
    float16, layout = hashlib.sha256(), hashlib.sha256()
    for name, tensor in _weights(model):
        layout.update(_layout(name, tensor))
        float16.update(_layout(name, tensor))
        float16.update(_rounded(_sample(tensor).to(torch.float16)))
    packing = _packing(model)
    return {
        "float16": float16.hexdigest(),
        "layout": layout.hexdigest(),
        **({"packing": packing} if packing else {"sketch": sketch(dict(_weights(model)))}),
    }


def same_base(base: Base, fingerprint: str, digests: Mapping[str, str] | None = None) -> bool:
    """Whether `base` has the weights whose `fingerprint` and `digests` (if known) were recorded, in any precision.

    The recorded weights or these may be the float16 cast of the others. Only float32 weights that were cast to bfloat16
    there and to float16 here, or the other way round, are taken for other weights: load them in float32.
    """
    return (
        base.fingerprint in (fingerprint, (digests or {}).get("float16")) or base.digests.get("float16") == fingerprint
    )


def other_precision(base: Base, digests: Mapping[str, str] | None = None) -> tuple[str, ...] | None:
    """The formats to which the weights that `digests` were recorded of are rounded in `base`; None for other weights.

    None too where nobody can tell: for digests without a sketch, packed weights, and formats that are not known.
    """
    recorded = digests or {}
    if recorded.get("layout") != base.digests.get("layout") or not {"sketch"} <= recorded.keys() & base.digests.keys():
        return None
    return rounded_to(dict(_weights(base.model)), recorded["sketch"])


def base_difference(base: Base, digests: Mapping[str, str] | None = None) -> str:
    """One sentence on how `base` differs from the weights that `digests` were recorded of, for errors."""
    recorded = digests or {}
    before, now = recorded.get("packing"), base.digests.get("packing")
    if now and not before:
        return (
            f"Its weights are quantised ({now}), which changes what the adapter adds to: a quantised copy of the right "
            "base is another base, and only its own recall tells whether the facts survive."
        )
    if before and not now:
        return (
            f"The adapter was trained on quantised weights ({before}), and these are not quantised: a dequantised copy "
            "is another base, and only its own recall tells whether the facts survive."
        )
    if not recorded:
        return "If this is the same base in float16 or quantised, load it as it was trained on."
    if recorded.get("layout") != base.digests.get("layout"):
        return "Names or shapes of the weights differ: another architecture, size, vocabulary or way of quantising."
    if base.dtype == "float32":
        return "Names and shapes agree but values do not: a fine-tuned, merged, quantised or dequantised copy."
    return (
        "Names and shapes agree but values do not: a fine-tuned, merged, quantised or dequantised copy, or float32 "
        "weights rounded in another way, which --dtype float32 rules out."
    )


def _packing(model: Any) -> str | None:
    """The quantisation method of a quantised model."""
    if not getattr(model, "is_quantized", False):
        return None
    method = getattr(model, "quantization_method", None)
    return str(getattr(method, "value", method or "unknown method"))


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and saved buffers by name; a tied weight, which is saved under two names, once."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    parameters = {id(weight) for weight in weights.values()}
    saved = model.state_dict(keep_vars=True).items()
    weights |= {name: value for name, value in saved if isinstance(value, Tensor) and id(value) not in parameters}
    return sorted(weights.items())


def _layout(name: str, tensor: Tensor) -> bytes:
    return f"{name}:{tuple(tensor.shape)};".encode()


def _sample(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten()[:: max(1, tensor.numel() // 65536)]


def _rounded(values: Tensor) -> bytes:
    return bytes(values.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().tobytes())
