"""Offload the layers below the adapter to main memory, so that only the part that trains must fit the accelerator."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memlaw.model.base import Base
from memlaw.model.parts import decoder_layers


@contextmanager
def evicted(base: Base, first: int, *, wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, the input embedding and the layers below `first` keep their weights in main memory.

    They can still be called, as measuring recall does, and then move to the accelerator one module at a time. On the
    CPU this changes nothing, and a warning says so.
    """
    if not wanted:
        yield
        return
    if torch.device(base.device).type == "cpu":
        warnings.warn("The model is already in main memory, so evicting its layers changes nothing.", stacklevel=3)
        yield
        return
    with offloaded(below(base.model, first), base.device):
        torch.cuda.empty_cache()
        yield


def below(model: Any, first: int) -> list[nn.Module]:
    """The layers below `first`, and the input embedding unless the head shares its weights."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    return [*([] if tied else [embedding]), *decoder_layers(model)[:first]]


@contextmanager
def offloaded(modules: list[nn.Module], device: str) -> Iterator[None]:
    """Inside, the weights of `modules` are on the CPU; those of a module move to `device` while it runs."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    for module in modules:
        cpu_offload(module, execution_device=torch.device(device))
    try:
        yield
    finally:
        for module in modules:
            remove_hook_from_module(module, recurse=True)
