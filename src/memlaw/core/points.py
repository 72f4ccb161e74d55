"""Points that a law is fitted to, and estimates with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A fitted number with standard error and 95% interval; None if the cells do not determine them."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LawPoint:
    """One measured cell as the law sees it. final_loss and loss_init are None if a table does not give them."""

    rank: float
    length: float
    delta_loss: float
    final_loss: float | None = None
    parameters: float | None = None
    seed: int | None = None
    """Distinguishes replicates: cells of one rank and length that differ by chance alone."""
    loss_memoryless: float | None = None
    """L_init': see CellResult."""

    @property
    def loss_init(self) -> float | None:
        return None if self.final_loss is None else self.final_loss + self.delta_loss
