from __future__ import annotations

from helpers.sample import recall
from memlaw.report import ReportContent, render


def test_a_share_is_never_rounded_to_all_or_to_nothing():
    nearly = recall({"a": [0.1] * 9999 + [2.0]})
    assert "<dd>99.9 %<small>9,999 of 10,000" in render(ReportContent(title="t", recall=nearly))
    hardly = recall({"a": [2.0] * 9999 + [0.1]})
    assert "<dd>0.1 %<small>1 of 10,000" in render(ReportContent(title="t", recall=hardly))
