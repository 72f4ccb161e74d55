"""The parts of a causal language model, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from memlaw.core.errors import ModelError


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, without gradients on its weights and without gradient checkpointing."""
    modes = {module: module.training for module in model.modules()}
    gradients = {p: p.requires_grad for p in model.parameters()}
    checkpointing = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    model.eval().requires_grad_(False)
    for module in checkpointing:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, wanted in gradients.items():
            parameter.requires_grad_(wanted)
        for module in checkpointing:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def decoder(model: Any) -> Any:
    """The module that turns ids into final hidden states: the causal LM without its head."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


def decoder_layers(model: Any) -> nn.ModuleList:
    """The stack of decoder layers. Raises ModelError for an architecture without one."""
    count = model.config.get_text_config().num_hidden_layers
    for module in decoder(model).children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__} has no list of {count} decoder layers that memlaw can find and adapt.")


def layer_prefix(model: Any) -> str:
    """Dotted path of the list of decoder layers inside the model, such as `model.layers`."""
    layers = decoder_layers(model)
    path: str = next(name for name, module in model.named_modules() if module is layers)
    return path


FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
"""Names of the normalisation after the last layer, in all known families."""


def final_norm(model: Any) -> nn.Module | None:
    """The normalisation after the last layer; None if it has no known name."""
    inner = decoder(model)
    candidates = (getattr(inner, name, None) for name in FINAL_NORMS)
    return next((norm for norm in candidates if isinstance(norm, nn.Module)), None)
