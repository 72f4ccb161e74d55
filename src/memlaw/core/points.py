"""Points that a law is fitted to, and estimates with their doubt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A fitted number with its doubt: standard error and 95% interval, None where the cells cannot tell them."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LawPoint:
    """One measured cell as the law sees it. final_loss and loss_init may be unknown (None) in hand-made tables."""

    rank: float
    length: float
    delta_loss: float
    final_loss: float | None = None
    parameters: float | None = None
    seed: int | None = None
    """Tells replicates apart: cells of one rank and length that differ in nothing but chance."""
    loss_memoryless: float | None = None
    """L_init': see CellResult."""

    @property
    def loss_init(self) -> float | None:
        return None if self.final_loss is None else self.final_loss + self.delta_loss
