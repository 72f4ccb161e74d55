"""Several adapters at once: the weighted sum of what each adds to its modules.

That sum is what several active adapters of PEFT compute, one made by `add_weighted_adapter(..., "cat")`, and llama.cpp
with several `lora: [{"id": ..., "scale": ...}]`; "svd" is the sum cut to fewer ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memlaw.adapter.faults import NOTHING, Allow, cannot_be_judged
from memlaw.adapter.info import AdapterFaultError, load_info
from memlaw.adapter.peft import PEFT_CONFIG, attach, loaded
from memlaw.adapter.stack import AdapterStack
from memlaw.core.errors import ConfigError
from memlaw.model.base import Base
from memlaw.model.outline import Site

MIXTURE = (
    "This is a mixture: every adapter acts on the prompts of all, and what an adapter recalls alone says nothing about "
    "the sum. Activate one adapter at a time, or train one on all facts."
)
"""For readers of what was measured with several adapters, or with one that is scaled."""


@dataclass(frozen=True)
class Weighted:
    """An adapter, and the factor before what it adds."""

    directory: Path
    weight: float = 1.0


def mixture_of(directories: Sequence[Path], weights: Sequence[float] | None = None) -> tuple[Weighted, ...]:
    """The adapters with their weights, by default 1 each. Raises ConfigError for other numbers of them."""
    given = [1.0] * len(directories) if weights is None else list(weights)
    if len(given) != len(directories):
        raise ConfigError(
            f"There are {len(directories)} adapters and {len(given)} weights: give one weight for each adapter, in the "
            "same order."
        )
    if not all(torch.tensor(given).isfinite()):
        raise ConfigError(f"The weights {given} of the adapters are not all finite numbers.")
    return tuple(map(Weighted, directories, given))


def is_mixture(parts: Sequence[Weighted]) -> bool:
    """Whether anything but one adapter as it was trained."""
    return len(parts) > 1 or any(part.weight != 1 for part in parts)


@contextmanager
def attach_all(
    base: Base, parts: Sequence[Weighted], allow: Allow = NOTHING
) -> Iterator[tuple[AdapterFaultError, ...]]:
    """Add the weighted sum of adapters to the base, and remove it again on exit; yields the faults that were allowed.

    One adapter with weight 1 is attached as `attach` does it. Raises AdapterError as that does, also for an adapter
    that is more than a low-rank update of its modules, which has no sum.
    """
    with ExitStack() as attached:
        if not is_mixture(parts):
            found = [attached.enter_context(attach(base, part.directory, allow)) for part in parts]
        else:
            updates = [_update(base, part, allow) for part in parts]  # all of them, before any is attached
            for stacks, _ in updates:
                for stack in stacks:
                    attached.enter_context(stack.attached(base.model))
            found = [faults for _, faults in updates]
        yield tuple(fault for faults in found for fault in faults)


def _update(base: Base, part: Weighted, allow: Allow) -> tuple[list[AdapterStack], tuple[AdapterFaultError, ...]]:
    """What one adapter adds, times its weight, as a stack of one for each module."""
    info = load_info(part.directory)
    if info is not None and not (part.directory / PEFT_CONFIG).exists():
        stack = loaded(base, part.directory)
        return [AdapterStack(stack.sites, stack.ranks, stack.scale * part.weight, stack.pairs)], ()
    with attach(base, part.directory, allow) as faults:
        stacks = [_of_module(part, path, module) for path, module in base.model.named_modules() if _is_tuner(module)]
    return stacks, faults


def _is_tuner(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _of_module(part: Weighted, path: str, module: Any) -> AdapterStack:
    """The update of one module that PEFT has wrapped. Raises AdapterFaultError for one that is not x A B."""
    from peft.tuners.lora import Linear

    (name,) = module.active_adapters
    plain = isinstance(module, Linear) and not (module.use_dora[name] or module.lora_bias[name])
    if not plain or name in getattr(module, "lora_variant", {}):
        raise cannot_be_judged(
            f"The adapter {part.directory}",
            f"more than a low-rank update of {path}",
            "cannot be scaled and added to another",
            "Mix plain LoRA adapters, or judge it alone.",
        )
    a, b = (_factor(half[name].weight) for half in (module.lora_A, module.lora_B))
    site = Site(path, 0, a.shape[1], b.shape[2])
    scale = torch.full((1, 1, 1), module.scaling[name] * part.weight, dtype=a.dtype, device=a.device)
    return AdapterStack([site], [a.shape[2]], scale, [(a, b)])


def _factor(weight: Tensor) -> Tensor:
    """PEFT's [out, in] as [1, in, out]."""
    return weight.detach().T[None]
