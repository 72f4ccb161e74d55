"""Which of a head's tokens are reachable, kept on disk: the search takes half a minute on a real vocabulary.

A file is named by the digest of all that determines its content, so it is never out of date. It holds token ids and
their digest. A damaged file is ignored; a folder that cannot be written costs the time of the search and no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from memlaw.core.cache import cache_folder
from memlaw.core.canonical import canonical_json, digest
from memlaw.core.files import write_text
from memlaw.model.head import FrozenHead

VERSION = 1
"""Goes up when the search decides differently for some token."""


def cached_ids(head: FrozenHead, tokens: Sequence[int], above: float, search: Callable[[], list[int]]) -> list[int]:
    """Those of `tokens` whose reach under `head` is above `above`: from the cache, else by `search`, and then kept."""
    path = cache_folder("reach") / f"{_key(head, tokens, above)}.json"
    found = None
    with suppress(OSError):
        found = _intact(path.read_bytes(), tokens)
    if found is None:
        found = search()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, canonical_json({"ids": found, "sha256": digest(found)}))
    return found


def _key(head: FrozenHead, tokens: Sequence[int], above: float) -> str:
    tensors = {name: getattr(head, name) for name in ("weight", "norm_weight", "norm_bias", "bias")}
    numbers = {name: getattr(head, name) for name in ("norm", "softcap", "scale", "epsilon")}
    hashes = {name: None if tensor is None else _hash(tensor) for name, tensor in tensors.items()}
    return digest({"version": VERSION, "head": hashes | numbers, "tokens": list(tokens), "above": above})


def _hash(tensor: torch.Tensor) -> str:
    held = tensor.detach().cpu().contiguous()
    shape = f"{held.dtype} {tuple(held.shape)}"
    return hashlib.sha256(shape.encode() + b"\n" + held.view(torch.uint8).numpy().tobytes()).hexdigest()


def _intact(content: bytes, tokens: Sequence[int]) -> list[int] | None:
    """The ids in a file; None if it is damaged."""
    try:
        held: Any = json.loads(content)
        ids = held["ids"]
        whole = held["sha256"] == digest(ids) and set(ids) <= set(tokens)
    except (ValueError, TypeError, KeyError):
        return None
    return ids if whole else None
