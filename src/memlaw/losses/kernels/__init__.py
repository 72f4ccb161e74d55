"""Kernels for accelerators, and the question whether they can be used here. Asking it needs no Triton."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import torch


@cache
def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `kernels.softmax` runs on this device for logits of this dtype, and gives there what torch gives.

    Only on CUDA with Triton, which torch brings along there. They prove themselves once, on a small chunk; where they
    cannot (no C compiler, a chip too old, a wrong result), a warning says why, and torch's own operations serve.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    try:
        from memlaw.losses.kernels import softmax

        fault = softmax.fault(device, dtype)
    except Exception as error:  # whatever Triton, its compilers or the driver may raise
        fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if fault:
        warnings.warn(
            f"The Triton kernels of the LM head cannot be used on {device} ({fault}). The same is computed by torch, "
            "with more memory traffic: results do not change.",
            stacklevel=2,
        )
    return not fault
