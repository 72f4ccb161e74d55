"""What a report can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memlaw.core.cells import CellResult
from memlaw.core.points import LawPoint
from memlaw.core.recall import RecallReport
from memlaw.core.side_effects import SideEffects
from memlaw.diagnosis.documents import Texts
from memlaw.law import Axis
from memlaw.report.figures import LawPredictor


@dataclass(frozen=True, kw_only=True)
class FittedLaw:
    """One fitted form of the law and the points it is shown against."""

    summary: Mapping[str, Any]
    """As `LawFit.summary()`: form, status, n, r2, mape, parameters, holdout, axis, source."""
    points: Sequence[LawPoint]
    predictor: LawPredictor | None = None
    """Draws the lines. Without it, or without fitted parameters, only the points and the summary are shown."""
    label: str = ""
    """Which family of cells it was fitted to, in words, if there are several."""

    @property
    def name(self) -> str:
        """Its name in columns and sentences."""
        return f"{self.form}, {self.label}" if self.label else self.form

    @property
    def form(self) -> str:
        """Its form, such as `bounded form`."""
        return f"{self.summary.get('form', 'unnamed')} form"

    @property
    def law(self) -> LawPredictor | None:
        """The predictor, if it has fitted parameters."""
        return self.predictor if self.summary.get("parameters") else None

    @property
    def axis(self) -> Axis:
        """What the law means by size."""
        return "parameters" if self.summary.get("axis") == "parameters" else "rank"


@dataclass(frozen=True, kw_only=True)
class AdapterCost:
    """What one adapter recalls, and what it does to its base elsewhere."""

    name: str
    place: str
    """Its rank and placement in words; empty if unknown."""
    recalled: int | None
    """Facts of which every token has p > 1/2."""
    records: int | None
    """Facts that it was trained on."""
    effects: SideEffects


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that a report can show. Where a part is missing, the page says which command makes it."""

    title: str
    cells: Sequence[CellResult] = ()
    grid: int | None = None
    """Number of cells in the grids that were probed, with those still to be trained; None: that of `cells`."""
    fits: Sequence[FittedLaw] = ()
    """Forms of the law, the most credible first: its lines are drawn and its R² is a key number."""
    plan: Mapping[str, Any] | None = None
    """As `Plan.to_dict()`; at least records, tokens, bits and rank."""
    recall: RecallReport | None = None
    advice: Sequence[str] = ()
    """Sentences on what to do after the recall."""
    costs: Sequence[AdapterCost] = ()
    """Adapters whose side effects were measured."""
    texts: Texts | None = None
    """Record id -> the text of each target token; shown only with `show_text`."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of a memory set -> its name."""
    made: Mapping[str, str] = field(default_factory=dict)
    """How the results were made, label -> value: settings, versions, fingerprints, machine."""
    commands: Sequence[str] = ()
    """Command lines that made the results, in order."""
