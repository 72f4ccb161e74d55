"""The constant part of a forward pass, kept on disk for the next pack of the same rows, on this machine or another.

The name of a file is a digest of everything that determines its contents, so it cannot be out of date; its own SHA-256
is checked when it is read. Tokens can be reconstructed from the states: the directory is as secret as the facts.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from memlaw.core.canonical import digest
from memlaw.model.base import Base
from memlaw.model.memory import storage_device
from memlaw.model.split import Forward, SplitForward
from memlaw.model.tensor_file import read_tensor, sha256, write_tensor

VERSION = 1
"""Increase when `memlaw.model.split` changes what it caches."""


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
                "ids": sha256(ids),
                "dtype": base.held_in,
                "device": ids.device.type,
            }
        )
        path = self.folder / f"{key}.safetensors"
        damaged = path.exists()
        saved = read_tensor(path, what="states")
        if saved is not None:
            return saved.to(storage_device(saved.nbytes, ids.device))
        states = forward.cache(ids)
        self._write(path, states, replace=damaged)
        return states

    def _write(self, path: Path, states: Tensor, *, replace: bool) -> None:
        try:
            write_tensor(path, states, replace=replace)
        except OSError as error:
            warnings.warn(
                f"The prefix cache cannot be written to {self.folder}: {error.strerror or error}. Training goes on "
                "without it.",
                stacklevel=2,
            )
