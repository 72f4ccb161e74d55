"""A recall report as JUnit XML, which CI systems show test by test: one case for each fact, named by its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import escape

from memlaw.core.recall import RecallReport, RecordRecall
from memlaw.core.version import installed_version

Texts = Mapping[str, Sequence[str]]


def junit_xml(report: RecallReport, *, suite: str, verbatim: bool = False, texts: Texts | None = None) -> str:
    """The document. A fact fails unless it is certified, or, with `verbatim`, recalled verbatim.

    Failures say what `why` says. Target text is left out unless `texts`, record id -> its tokens as text, is given.
    """
    failed = sum(not holds(item, verbatim=verbatim) for item in report.items)
    cases = "".join(_case(item, suite, verbatim, texts) for item in report.items)
    counts = f'tests="{report.records}" failures="{failed}" errors="0" skipped="0"'
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f"<testsuites {counts}>\n"
        f'<testsuite name="{_quoted(suite)}" {counts}>\n'
        f'<properties><property name="memlaw" value="{_quoted(installed_version())}"/></properties>\n'
        f"{cases}</testsuite>\n</testsuites>\n"
    )


def holds(item: RecordRecall, *, verbatim: bool = False) -> bool:
    """Whether a fact counts as recalled: certified or, with `verbatim`, whatever its probabilities, as it came back."""
    return bool(item.exact if verbatim else item.certified)


def _case(item: RecordRecall, suite: str, verbatim: bool, texts: Texts | None) -> str:
    inside = ""
    if not holds(item, verbatim=verbatim):
        why = _quoted(item.why or "It was not decoded.")
        inside += f'<failure type="{item.reason or "unknown"}" message="{why}">{why}</failure>'
    if texts is not None:
        inside += f"<system-out>{_quoted(''.join(texts[item.id]))}</system-out>"
    return f'<testcase classname="{_quoted(suite)}" name="{_quoted(item.id)}">{inside}</testcase>\n'


def _quoted(text: str) -> str:
    """`text` in an attribute or element. XML cannot hold most control characters, so these are spelled out."""
    return str(escape("".join(letter if _is_xml(letter) else ascii(letter)[1:-1] for letter in text)))


def _is_xml(letter: str) -> bool:
    code = ord(letter)
    return code >= 0x20 and not 0x7F <= code <= 0x9F and not 0xD800 <= code <= 0xDFFF and code not in (0xFFFE, 0xFFFF)
