"""Precisions in which recall is judged: what a certificate needs there, and the margin to train with for it.

A precision that is added to both tables is known to `memlaw train --for`, the advice and the certificates.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal["float64", "float32", "float16", "bfloat16", "q8_0", "q5_0", "q4_0"]

QUANTISED = ("q8_0", "q5_0", "q4_0")
"""Formats of llama.cpp: weights in blocks of 32 that share a scale (`memlaw.model.rounding`)."""

AS_LOADED = ("float64", "float32")
"""Precisions that need no other weights than those that were loaded."""

TOLERANCE = {
    "float64": 1e-6,
    "float32": 1e-5,
    "float16": 4e-3,
    "bfloat16": 2.5e-2,
    "q8_0": 8e-2,
    "q5_0": 8e-2,
    "q4_0": 8e-2,
}
"""Smallest margin in nats that a certificate needs, by precision.

llama.cpp rounds the inputs of a product with quantised weights to 8 bits, in blocks of 32. That raised the loss of
tokens near the threshold by up to 0.071 nats (`benchmarks/served.py`)."""

MARGINS = {
    "float64": 0.1,
    "float32": 0.1,
    "float16": 0.1,
    "bfloat16": 0.5,
    "q8_0": 0.6,
    "q5_0": 0.6,
    "q4_0": 0.6,
}
"""Margin in nats to train with, in float32, for certificates in a precision (measured: `benchmarks/margins.py`).

It covers what a loss moves by when the weights are rounded, and what teacher-forced and cached losses differ by. Both
shrink as the tokens get more certain, so that a larger margin also needs less. Below ln 2 = 0.693, since no loss is
below 0. Of a quantised format the weights are known (`memlaw.model.rounding`), and its margin covers the rounding of
inputs to 8 bits alone: 0.3 is enough for the bundled base, SmolLM2 needs twice that (`benchmarks/serving.py`)."""

LARGEST_MARGIN = 0.65
"""Nats, p > 0.96: beyond, what is left to gain before ln 2 takes most of a training's steps."""
