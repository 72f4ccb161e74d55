"""What a page can be made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memlaw.core.cells import CellResult
from memlaw.core.points import LawPoint
from memlaw.core.recall import RecallReport
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
    """Draws the lines; without it, or without parameters, only the points and the summary are shown."""
    label: str = ""
    """Which family of cells it was fitted to, in words, if there are several."""

    @property
    def name(self) -> str:
        """What a column or sentence calls it."""
        return f"{self.form}, {self.label}" if self.label else self.form

    @property
    def form(self) -> str:
        """Its form, in words."""
        return f"{self.summary.get('form', 'unnamed')} form"

    @property
    def law(self) -> LawPredictor | None:
        """The predictor, if it has anything to predict with."""
        return self.predictor if self.summary.get("parameters") else None

    @property
    def axis(self) -> Axis:
        """What the law calls size."""
        return "parameters" if self.summary.get("axis") == "parameters" else "rank"


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that a report can show. Whatever is absent is left out, with a sentence that says how to get it."""

    title: str
    cells: Sequence[CellResult] = ()
    grid: int | None = None
    """Number of cells in the grids that were probed, with those still to be trained; None: that of `cells`."""
    fits: Sequence[FittedLaw] = ()
    """The forms of the law, the one to be believed first: its lines are drawn, its R² stands at the top."""
    plan: Mapping[str, Any] | None = None
    """As `Plan.to_dict()`; at least records, tokens, bits and rank."""
    recall: RecallReport | None = None
    advice: Sequence[str] = ()
    """What to do after the recall, a sentence each."""
    texts: Texts | None = None
    """Record id -> its target tokens as text, one string a token; shown only with `show_text`."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of a memory set -> what a person calls it."""
    made: Mapping[str, str] = field(default_factory=dict)
    """How it was made: settings, versions, fingerprints, machine; label -> value."""
    commands: Sequence[str] = ()
    """Command lines that made it, in order."""
