"""Did it stick? Verdicts on records from the numbers of their tokens: pure arithmetic, no model, no torch.

`verdicts` judges each record and counts, `reasons` says why one is not certified, `patterns` what the failures of a
set have in common, `documents` writes all of it as JSON and reads it back.
"""

from __future__ import annotations

from memlaw.diagnosis.documents import SCHEMA, RecallDocument, Texts, report_from_dict, report_schema, report_to_dict
from memlaw.diagnosis.patterns import Correlation, LossBand, Patterns, patterns
from memlaw.diagnosis.verdicts import (
    diagnose,
    not_a_number,
    position_counts,
    stubborn_counts,
    stubborn_positions,
    worst,
)

__all__ = [
    "SCHEMA",
    "Correlation",
    "LossBand",
    "Patterns",
    "RecallDocument",
    "Texts",
    "diagnose",
    "not_a_number",
    "patterns",
    "position_counts",
    "report_from_dict",
    "report_schema",
    "report_to_dict",
    "stubborn_counts",
    "stubborn_positions",
    "worst",
]
