"""Kernels for accelerators, and whether they can be used here: `usable` needs no Triton to answer."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch

from memlaw.core.errors import one_line


@cache
def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `kernels.softmax` runs on this device for logits of this dtype and agrees with torch.

    Needs CUDA and Triton, which comes with torch there. The kernels are verified once, on a small chunk; if that fails
    (no C compiler, too old a GPU, a wrong result), memlaw warns and falls back to torch's own operations.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        from memlaw.losses.kernels import softmax

        fault = softmax.fault(device, dtype)
    except Exception as error:  # whatever Triton, its compilers or the driver may raise
        fault = f"{type(error).__name__}: {one_line(error)}"
    if fault:
        warnings.warn(
            f"The Triton kernels of the LM head cannot be used on {device} ({fault}). memlaw falls back to torch, "
            "which reads and writes more memory; results do not change.",
            stacklevel=2,
        )
    return not fault
