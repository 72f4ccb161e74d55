"""What the losses refuse, in one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memlaw.core.errors import ConfigError, suggest


def require_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest names, for a name that would change nothing."""
    if name in known:
        return
    raise ConfigError(f"Unknown {kind} {name!r}. {suggest(name, known)}Known: {', '.join(known)}.")


def check_reduction(reduction: str, num_items: int | Tensor | None, known: Sequence[str]) -> None:
    """Refuses a reduction that is not among the `known` ones, and `num_items` that would change nothing."""
    require_known("reduction", reduction, known)
    if num_items is None:
        return
    if reduction != "mean":
        raise ConfigError(f"num_items is what a mean divides by; reduction {reduction!r} divides by nothing.")
    if num_items < 0:
        raise ConfigError(f"num_items is {int(num_items)}: give the number of target tokens of the whole step.")


def require_same_places(name: str, values: Tensor, labels: Tensor) -> None:
    """Raises ConfigError unless `values` have one entry for each of the labels [batch, time]."""
    if labels.dim() != 2 or values.shape != labels.shape:
        raise ConfigError(
            f"{name} of {list(values.shape)} tokens for labels of {list(labels.shape)}: both are [batch, time]."
        )
