"""The constant part of a forward pass, kept on disk for the next pack of the same rows, on this machine or another.

The name of a file is a digest of everything that determines its contents, so it cannot be out of date; its own SHA-256
is checked when it is read. Tokens can be reconstructed from the states: the directory is as secret as the facts.
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
"""Increase when `memlaw.model.split` changes what it caches."""

_NAME = "states"


class PrefixCache:
    """A directory of cached states, shared by any number of processes; the first writer of a file wins."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def states(self, base: Base, sites: Sequence[str], forward: Forward, ids: Tensor) -> Tensor:
        """`forward.cache(ids)`, [rows, time, ...], computed only if the directory does not hold it.

        `sites` are the adapted modules of the first adapted layer, where `forward` splits `base`. Warns of a damaged
        file, and computes the states again; warns if a file cannot be written.
        """
        if not isinstance(forward, SplitForward):  # a full forward caches only the tokens
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
            saved = _read(path)
            if saved is not None:
                return saved.to(storage_device(saved.nbytes, ids.device))
        states = forward.cache(ids)
        self._write(path, states.cpu().contiguous(), replace=damaged)
        return states

    def _write(self, path: Path, states: Tensor, *, replace: bool) -> None:
        try:
            files.make_folders(self.folder)
            files.write(path, save({_NAME: states}, {"sha256": _sha256(states)}), replace=replace, mode=0o600)
        except OSError as error:
            warnings.warn(
                f"The prefix cache cannot be written to {self.folder}: {error.strerror or error}. Training goes on "
                "without it.",
                stacklevel=2,
            )


def _read(path: Path) -> Tensor | None:
    """The states in a file; None, with a warning, if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            states: Tensor = file.get_tensor(_NAME)
            intact = (file.metadata() or {}).get("sha256") == _sha256(states)
        reason = "its SHA-256 does not match"
    except (OSError, SafetensorError) as error:
        intact, reason = False, str(error)
    if intact:
        return states
    warnings.warn(f"The cached states {path} are damaged ({reason}) and will be computed again.", stacklevel=2)
    return None


def _sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    on_cpu = tensor.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{on_cpu.dtype} {tuple(on_cpu.shape)} ".encode())
    hasher.update(on_cpu.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
