"""LoRA adapters: where they sit, many of them at once, and PEFT's format on disk.

A *site* is a module of the frozen base that an adapter adds to: y = module(x) + scale * dropout(x) A B. With A
[d_in, r] and B [d_out, r] transposed this is PEFT's LoRA on a linear module; on a whole MLP block (`mlp@L`) it is the
parallel adapter of arXiv 2605.30260, which PEFT has no name for. K adapters are one stack [K, d_in, r_max]: a smaller
rank has zero columns, whose gradients are exactly zero, so they stay zero.
"""

from memlaw.adapter.files import attach, check_free, load_info, save
from memlaw.adapter.placement import outline_of_model, parse_placement
from memlaw.adapter.stack import AdapterStack, Dropout
from memlaw.outline import Site
from memlaw.placement import ALL_LINEAR, PARALLEL, Placement

__all__ = [
    "ALL_LINEAR",
    "PARALLEL",
    "AdapterStack",
    "Dropout",
    "Placement",
    "Site",
    "attach",
    "check_free",
    "load_info",
    "outline_of_model",
    "parse_placement",
    "save",
]
