"""One self-contained HTML file that answers: will it fit, did it stick, which tokens did not?

Nothing is computed here that another module defines: records come in, sentences, tables and figures go out. The page
loads nothing, runs no script and forbids both by its content-security policy; every string of the user's is escaped.
Target text is sensitive: it is shown only with `show_text=True`, and then only the file's owner may read the file.
"""

from __future__ import annotations

from memlaw.report.content import FittedLaw, ReportContent
from memlaw.report.page import render, write
from memlaw.report.recall import SHOWN_TOKENS, WORST_RECORDS

__all__ = ["SHOWN_TOKENS", "WORST_RECORDS", "FittedLaw", "ReportContent", "render", "write"]
