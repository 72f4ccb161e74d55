"""One self-contained HTML file that answers: will it fit, did it stick, which tokens did not?

Records come in; sentences, tables and figures go out. Quantities are computed where they are defined, not here. The
page loads nothing and runs no script but its own, which its content-security policy enforces; strings of users are
escaped.
Target text is sensitive: it is shown only with `show_text=True`, and then only the file's owner may read the file.
"""

from __future__ import annotations

from memlaw.report.content import FittedLaw, ReportContent
from memlaw.report.page import render, write
from memlaw.report.recall import SHOWN_TOKENS, WORST_RECORDS

__all__ = ["SHOWN_TOKENS", "WORST_RECORDS", "FittedLaw", "ReportContent", "render", "write"]
