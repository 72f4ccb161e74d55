"""Memory: how much is free, whether it ran out, and what a backward pass will need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch or Python ran out of memory; on the CPU, PyTorch raises an ordinary RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def free_bytes(device: str) -> int:
    """Bytes a process may still allocate: on the accelerator, or in main memory (Linux; elsewhere 4 GiB)."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 4 * 2**30
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def storage_device(nbytes: int, device: torch.device) -> torch.device:
    """Where to keep large data that is rarely read: on `device` if it takes at most a quarter of the free memory there,
    else on the CPU."""
    return device if device.type == "cpu" or nbytes <= free_bytes(str(device)) / 4 else torch.device("cpu")


@contextmanager
def counting_saved(ignored: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Count the bytes that the operations inside save for their backward pass, without the tensors `ignored`.

    The count is the same on every device and exact, while a peak of resident memory depends on what ran before.
    """
    counted_elsewhere = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted_elsewhere:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield lambda: sum(sizes.values())
