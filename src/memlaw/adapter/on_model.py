"""Placements on a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from memlaw.adapter.placement import Placement, resolve
from memlaw.core.errors import AdapterError
from memlaw.model.outline import Site
from memlaw.model.outline_from_module import outline_of_model


def placement_on(text: str | None, model: Any) -> Placement:
    """`resolve` on a loaded model; also raises AdapterError for a module that the model uses in two places."""
    placement = resolve(text, outline_of_model(model))
    _refuse_shared_modules(placement.sites, model)
    return placement


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
