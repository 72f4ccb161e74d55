"""Memory: how much there is, and whether it was that which ran out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python says so: on the CPU, PyTorch does in an ordinary RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def free_bytes(device: str) -> int:
    """What a process may still take: of the accelerator's memory, or of this machine's (Linux; elsewhere 4 GiB)."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 4 * 2**30
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def storage_device(nbytes: int, device: torch.device) -> torch.device:
    """Where something large and rarely read is kept: on `device` if it takes at most a quarter of what is free there,
    else on the CPU."""
    return device if device.type == "cpu" or nbytes <= free_bytes(str(device)) / 4 else torch.device("cpu")


@contextmanager
def counting_saved(ignored: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """How many bytes the operations inside save for their backward pass, beside the tensors `ignored`.

    The same on every device, and exact where a peak of resident memory depends on what ran before.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield lambda: sum(sizes.values())
