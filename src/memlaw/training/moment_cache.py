"""C and G kept on disk: every training of one placement on one base measures the same.

A folder is named by the digest of all that determines its content, so it is never out of date. It has a file for each
module, with the numbers of C and G as the adapters use them, one after the other. A folder that is damaged or
incomplete is measured again; one that cannot be written costs that time and no more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from memlaw.core.cache import cache_folder
from memlaw.core.canonical import digest
from memlaw.model.base import Base
from memlaw.model.outline import Site
from memlaw.model.tensor_file import read_tensor, sha256, write_tensor

VERSION = 1
"""Increase when the same text gives other C and G."""

KEPT_BYTES = 1 << 30
"""Largest size of all folders together: the one used longest ago goes first."""

Shape = tuple[int, ...]


def key_of(base: Base, sites: Sequence[Site], ids: Tensor) -> str:
    """The name of the folder for `sites` and neutral `ids`."""
    return digest(
        {
            "version": VERSION,
            "model": base.fingerprint,
            "dtype": base.held_in,
            "device": torch.device(base.device).type,
            "sites": [[site.path, site.layer, site.d_in, site.d_out] for site in sites],
            "ids": sha256(ids),
        }
    )


def kept(key: str, shapes: Sequence[tuple[Shape, Shape]]) -> list[tuple[Tensor, Tensor]] | None:
    """The numbers of C and G at each module, in `shapes`; None if they are not all there and intact."""
    folder = _root() / key
    found = []
    for place, (inputs, outputs) in enumerate(shapes):
        numbers = read_tensor(_file(folder, place), what="moments")
        sizes = [torch.Size(inputs).numel(), torch.Size(outputs).numel()]
        if numbers is None or numbers.numel() != sum(sizes):
            return None
        first, second = torch.split(numbers, sizes)
        # Cloned, so that they begin in memory where measured ones do: that decides the last bit of a product.
        found.append((first.view(inputs).clone(), second.view(outputs).clone()))
    with contextlib.suppress(OSError):
        os.utime(folder)
    return found


def keep(key: str, moments: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Write the numbers of C and G at each module, unless they are too many or the folder cannot be written."""
    size = sum(tensor.nbytes for pair in moments for tensor in pair)
    if size > KEPT_BYTES:
        return
    folder = _root() / key
    with contextlib.suppress(OSError):
        _make_room(size, apart_from=folder)
        for place, pair in enumerate(moments):
            numbers = torch.cat([tensor.detach().cpu().flatten() for tensor in pair])
            path = _file(folder, place)
            write_tensor(path, numbers, replace=path.exists())


def _root() -> Path:
    return cache_folder("moments")


def _file(folder: Path, place: int) -> Path:
    return folder / f"{place}.safetensors"


def _make_room(size: int, *, apart_from: Path) -> None:
    """Remove folders, the one used longest ago first, until `size` bytes more are within KEPT_BYTES."""
    if not _root().is_dir():
        return
    others = [folder for folder in _root().iterdir() if folder.is_dir() and folder != apart_from]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in others}
    for folder in sorted(others, key=lambda folder: folder.stat().st_mtime):
        if sum(sizes.values()) + size <= KEPT_BYTES:
            return
        shutil.rmtree(folder, ignore_errors=True)
        del sizes[folder]
