"""One tensor in a file of a cache: whoever reads it gets exactly what was written, or computes it again."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from memlaw.core import files

_NAME = "states"


def read_tensor(path: Path, *, what: str) -> Tensor | None:
    """The tensor in a file; None if there is no such file, or, with a warning, if it is damaged.

    `what` names the content in the plural, for the warning.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(_NAME)
            intact = (file.metadata() or {}).get("sha256") == sha256(tensor)
        reason = "its SHA-256 does not match"
    except (OSError, SafetensorError) as error:
        intact, reason = False, str(error)
    if intact:
        return tensor
    warnings.warn(f"The cached {what} {path} are damaged ({reason}) and will be computed again.", stacklevel=2)
    return None


def write_tensor(path: Path, tensor: Tensor, *, replace: bool) -> None:
    """Write a tensor to a file that only its owner can read; without `replace`, the first writer wins. Raises OSError.

    The folder is created.
    """
    tensor = tensor.detach().cpu().contiguous()
    files.make_folders(path.parent)
    files.write(path, save({_NAME: tensor}, {"sha256": sha256(tensor)}), replace=replace, mode=0o600)


def sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    on_cpu = tensor.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{on_cpu.dtype} {tuple(on_cpu.shape)} ".encode())
    hasher.update(on_cpu.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
