"""The outline of a loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from memlaw.model.outline import MLP, Outline, Site, by_layer_and_path, count_weights
from memlaw.model.parts import decoder_layers, layer_prefix


def outline_of_model(model: Any, *, name: str | None = None) -> Outline:
    """The outline of a causal LM in memory, by default under the name it was loaded from. Raises ModelError."""
    config, head = model.config.get_text_config(), model.get_output_embeddings() or model.get_input_embeddings()
    layers, prefix, width = decoder_layers(model), layer_prefix(model), config.hidden_size
    linear = [
        Site(f"{prefix}.{index}.{inner}", index, *_shape(module))
        for index, layer in enumerate(layers)
        for inner, module in _linear_modules(layer)
    ]
    return Outline(
        name=name or model.config.name_or_path or type(model).__name__,
        family=config.model_type,
        width=width,
        vocabulary=len(head.weight),
        context=getattr(config, "max_position_embeddings", None),
        linear=tuple(sorted(linear, key=by_layer_and_path)),
        blocks=tuple(
            Site(f"{prefix}.{index}.{MLP}", index, width, width)
            for index, layer in enumerate(layers)
            if isinstance(getattr(layer, MLP, None), nn.Module)
        ),
        layer_weights=tuple(map(_weights, layers)),
        head_weights=head.weight.numel(),
        fused=tuple(sorted({name for layer in layers for name, w in layer.named_parameters() if w.dim() == 3})),
    )


def _linear_modules(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for inner, module in layer.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and inner != MLP:
            yield inner, module


def _shape(module: Any) -> tuple[int, int, bool]:
    """(d_in, d_out, transposed) of a linear module; a packed weight has another shape."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf, True
    return module.in_features, module.out_features, False


def _weights(layer: nn.Module) -> int:
    """Number of weights, shared ones counted once; a packed matrix counts its elements, not its bytes."""
    elements: dict[int, int] = {}
    for _, module in _linear_modules(layer):
        d_in, d_out, _ = _shape(module)
        elements[id(module.weight)] = d_in * d_out
    return count_weights(elements.get(id(weight), weight.numel()) for weight in layer.parameters())
