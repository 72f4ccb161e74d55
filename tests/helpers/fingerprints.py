"""One hash of all that makes a model what it is."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def everything(model: Any) -> str:
    """SHA-256 of all that an adapter could leave changed: modules, weights, buffers, hooks, flags, configs.

    Identities count too: a copy of a weight with the same values is another weight to whoever ties or trains it.
    """
    hasher = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        attributes = vars(module)
        hooks = {key: len(value) for key, value in attributes.items() if key.endswith("_hooks")}
        config = module.config.to_json_string(use_diff=False) if hasattr(module, "config") else ""
        parts = (name, id(module), type(module), sorted(attributes), hooks, module.training, config)
        hasher.update(f"{parts} {getattr(module, 'layer_idx', None)} {module.extra_repr()}".encode())
    hasher.update(str(model.generation_config.to_dict()).encode())
    weights = model.named_parameters(remove_duplicate=False)
    for name, tensor in [*weights, *model.named_buffers(remove_duplicate=False)]:
        place = (name, id(tensor), tensor.data_ptr(), tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        hasher.update(str(place).encode())
        hasher.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
