"""The optimizers under the names that settings give them."""

from __future__ import annotations

from collections.abc import Mapping

from memlaw.core.config import Optimizer
from memlaw.training.optimizers.adamw import StackedAdamW
from memlaw.training.optimizers.base import StackedOptimizer
from memlaw.training.optimizers.muon import StackedMuon

OPTIMIZERS: Mapping[Optimizer, type[StackedOptimizer]] = {"adamw": StackedAdamW, "muon": StackedMuon}
