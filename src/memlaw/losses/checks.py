"""Checks of what users pass to the losses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memlaw.core.errors import ConfigError, suggest


def require_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raises ConfigError, with the closest known names, for an unknown name."""
    if name in known:
        return
    raise ConfigError(f"Unknown {kind} {name!r}. {suggest(name, known)}Known: {', '.join(known)}.")


def check_reduction(reduction: str, num_items: int | Tensor | None, known: Sequence[str]) -> None:
    """Raises ConfigError for an unknown reduction, and for `num_items` that would be ignored or cannot be."""
    require_known("reduction", reduction, known)
    if num_items is None:
        return
    if reduction != "mean":
        raise ConfigError(
            f"num_items is the divisor of a mean; reduction {reduction!r} divides by nothing. Leave it out."
        )
    if num_items < 0:
        raise ConfigError(f"num_items is {int(num_items)}: give the number of target tokens of the whole step.")


def require_same_places(name: str, values: Tensor, labels: Tensor) -> None:
    """Raises ConfigError unless `values` have one entry for each label [batch, time]."""
    if labels.dim() != 2 or values.shape != labels.shape:
        raise ConfigError(
            f"{name} of {list(values.shape)} tokens for labels of {list(labels.shape)}: both are [batch, time]."
        )


def require_in_vocabulary(tokens: Tensor, vocabulary: int) -> None:
    """Raises ConfigError for target tokens [n] that are not ids of a vocabulary of that size."""
    outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(outside):
        raise ConfigError(
            f"The labels hold the id {int(outside[0])}, and the head has the ids 0 to {vocabulary - 1}: its vocabulary "
            f"has {vocabulary} tokens. Use the tokenizer saved with the model, resize its embeddings to the tokenizer, "
            "or set the labels of places that are not targets to -100."
        )
