"""Precisions in which recall is judged: what a certificate needs there, and the margin to train with for it.

A precision that is added to both tables is known to `memlaw train --for`, the advice and the certificates.
"""

from __future__ import annotations

TOLERANCE = {"float64": 1e-6, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2.5e-2}
"""Smallest margin in nats that a certificate needs, by precision."""

MARGINS = {"float64": 0.1, "float32": 0.1, "float16": 0.1, "bfloat16": 0.5}
"""Margin in nats to train with, in float32, for certificates in a precision (measured: `benchmarks/margins.py`).

It covers what a loss moves by when the weights are rounded, and what teacher-forced and cached losses differ by. Both
shrink as the tokens get more certain, so that a larger margin also needs less. Below ln 2 = 0.693, since no loss is
below 0."""

LARGEST_MARGIN = 0.65
"""Nats, p > 0.96: beyond, what is left to gain before ln 2 takes most of a training's steps."""
