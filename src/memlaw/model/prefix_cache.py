"""The constant part of a forward pass, kept on disk for the next pack of the same rows, on this machine or another.

A file is named by everything that determines what is in it, so it is never out of date, and it is checked against its
own SHA-256 when it is read. The tokens can be made out again from what is kept: the directory is as secret as they are.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from memlaw.core import files
from memlaw.core.canonical import digest
from memlaw.model.base import Base
from memlaw.model.memory import storage_device
from memlaw.model.split import Forward, SplitForward

VERSION = 1
"""Raised when `memlaw.model.split` changes what it caches."""

_NAME = "states"


class PrefixCache:
    """A directory of cached states, shared by any number of processes; the first writer of a file wins."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def states(self, base: Base, sites: Sequence[str], forward: Forward, ids: Tensor) -> Tensor:
        """`forward.cache(ids)`, [rows, time, ...], computed only if the directory does not hold it.

        `sites` are the adapted modules of the first adapted layer, where `forward` splits `base`. A file that is
        damaged costs a warning and the computation; one that cannot be written costs a warning.
        """
        if not isinstance(forward, SplitForward):  # what it caches are the tokens
            return forward.cache(ids)
        key = digest(
            {
                "version": VERSION,
                "model": base.fingerprint,
                "forward": type(forward).__name__,
                "sites": list(sites),
                "ids": _sha256(ids),
                "dtype": base.dtype,
                "device": ids.device.type,
            }
        )
        path = self.folder / f"{key}.safetensors"
        damaged = path.exists()
        if damaged:
            kept = _read(path)
            if kept is not None:
                return kept.to(storage_device(kept.nbytes, ids.device))
        states = forward.cache(ids)
        self._keep(path, states.cpu().contiguous(), replace=damaged)
        return states

    def _keep(self, path: Path, states: Tensor, *, replace: bool) -> None:
        try:
            files.make_folders(self.folder)
            files.write(path, save({_NAME: states}, {"sha256": _sha256(states)}), replace=replace, mode=0o600)
        except OSError as error:
            sentence = f"The states below the adapters cannot be kept in {self.folder}: {error.strerror or error}."
            warnings.warn(sentence, stacklevel=2)


def _read(path: Path) -> Tensor | None:
    """What a file holds; None, with a warning, if it is not what was written there."""
    try:
        with safe_open(path, framework="pt") as file:
            states: Tensor = file.get_tensor(_NAME)
            intact = (file.metadata() or {}).get("sha256") == _sha256(states)
        reason = "its SHA-256 does not match"
    except (OSError, SafetensorError) as error:
        intact, reason = False, str(error)
    if intact:
        return states
    warnings.warn(f"The kept states {path} are damaged ({reason}): they are computed again.", stacklevel=2)
    return None


def _sha256(tensor: Tensor) -> str:
    """Of its type, shape and bytes."""
    held = tensor.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{held.dtype} {tuple(held.shape)} ".encode())
    hasher.update(held.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
