"""Placements on a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from memlaw.adapter.placement import ALL_LINEAR, Placement, resolve
from memlaw.core.errors import AdapterError
from memlaw.model.outline import Site
from memlaw.model.outline_from_module import outline_of_model


def placement_on(text: str | None, model: Any) -> Placement:
    """`resolve` on a loaded model; also raises AdapterError for a module that the model uses in two places."""
    placement = resolve(text, outline_of_model(model))
    _refuse_shared_modules(placement.sites, model)
    if not placement.parallel and _is_ambiguous(placement, model):
        return replace(placement, full_paths=True)
    return placement


def _is_ambiguous(placement: Placement, model: Any) -> bool:
    """Whether PEFT would adapt other modules than the sites by the short names and layers of `placement`.

    PEFT takes the first number in a path for its layer; earlier versions took the last, also that of an expert.
    """
    head, names, layers = model.get_output_embeddings(), placement.names_for_peft, placement.layers
    first, last = set(), set()
    for path, module in model.named_modules():
        if names == ALL_LINEAR:
            named = isinstance(module, nn.Linear | Conv1D) and module is not head
        else:
            named = path.rpartition(".")[2] in names
        numbers = [int(part) for part in path.split(".") if part.isdecimal()] or [-1]
        if named and (layers is None or numbers[0] in layers):
            first.add(path)
        if named and (layers is None or numbers[-1] in layers):
            last.add(path)
    return not first == last == {site.path for site in placement.sites}


def _refuse_shared_modules(sites: Sequence[Site], model: nn.Module) -> None:
    """Refuse a module used in two places. Shared weights are fine: adapters add to outputs, not to weights."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    for site in sites:
        others = [name for name in names[id(model.get_submodule(site.path))] if name != site.path]
        if others:
            raise AdapterError(
                f"{site.path} and {others[0]} are the same module, so an adapter on one would act in both places here, "
                "but only in one when PEFT loads it. Adapt a module that is not shared, or give each place a "
                "`copy.deepcopy` of it."
            )
