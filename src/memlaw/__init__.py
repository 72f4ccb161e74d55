"""memlaw: what a LoRA adapter can hold, whether it holds it, and how to make it hold more (arXiv 2605.30260).

Public names load on first use, so `import memlaw` is instant, and the law, the planner and the statistics of recall
never load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlaw import ledger as ledger
    from memlaw.api import advise as advise
    from memlaw.api import check as check
    from memlaw.api import plan as plan
    from memlaw.api import probe as probe
    from memlaw.api import recall as recall
    from memlaw.api import side_effects as side_effects
    from memlaw.api import train as train
    from memlaw.api import verify as verify
    from memlaw.core.config import Execution as Execution
    from memlaw.core.config import TrainConfig as TrainConfig
    from memlaw.core.errors import MemlawError as MemlawError
    from memlaw.core.facts import Fact as Fact
    from memlaw.core.facts import MemorySet as MemorySet
    from memlaw.core.points import Estimate as Estimate
    from memlaw.core.points import LawPoint as LawPoint
    from memlaw.core.recall import RecallReport as RecallReport
    from memlaw.core.side_effects import SideEffects as SideEffects
    from memlaw.data import read as read
    from memlaw.law import LawFit as LawFit
    from memlaw.law import fit_law as fit_law
    from memlaw.law import published as published
    from memlaw.losses import memft_head_loss as memft_head_loss
    from memlaw.losses import memft_loss as memft_loss
    from memlaw.model.base import load as load
    from memlaw.serving.settings import VerifyConfig as VerifyConfig
    from memlaw.serving.verify import Verification as Verification

    __version__: str

_HOMES = {
    "Estimate": "memlaw.core.points",
    "Execution": "memlaw.core.config",
    "Fact": "memlaw.core.facts",
    "LawFit": "memlaw.law",
    "LawPoint": "memlaw.core.points",
    "MemlawError": "memlaw.core.errors",
    "MemorySet": "memlaw.core.facts",
    "RecallReport": "memlaw.core.recall",
    "SideEffects": "memlaw.core.side_effects",
    "TrainConfig": "memlaw.core.config",
    "Verification": "memlaw.serving.verify",
    "VerifyConfig": "memlaw.serving.settings",
    "advise": "memlaw.api",
    "check": "memlaw.api",
    "fit_law": "memlaw.law",
    "load": "memlaw.model.base",
    "memft_head_loss": "memlaw.losses",
    "memft_loss": "memlaw.losses",
    "plan": "memlaw.api",
    "probe": "memlaw.api",
    "read": "memlaw.data",
    "recall": "memlaw.api",
    "side_effects": "memlaw.api",
    "train": "memlaw.api",
    "verify": "memlaw.api",
}

_MODULES = {"ledger": "memlaw.ledger", "published": "memlaw.law.published"}

__all__ = ["__version__", *sorted((*_HOMES, *_MODULES))]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name == "__version__":
        return importlib.import_module("memlaw.core.version").installed_version()
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'memlaw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
