"""For your own tests: one assertion that facts are recalled, by a model in this process or by a server.

from memlaw.testing import assert_recalled

def test_the_server_knows_its_facts():
    assert_recalled("http://127.0.0.1:8080", "facts.jsonl", "Qwen/Qwen3-0.6B")
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from memlaw.core.errors import ConfigError
from memlaw.core.recall import RecallReport

if TYPE_CHECKING:
    from memlaw.data.load import Facts

SHOWN = 20
"""Facts that a failed assertion names."""


def assert_recalled(model: Any, facts: Facts, tokenizer: Any = None, *, verbatim: bool = False, **options: Any) -> None:
    """Raise AssertionError, which names the facts that fail and says why, unless every fact is certified.

    `model` is a model in memory or the URL of a server, and `facts` whatever `memlaw.read` takes. `tokenizer` is that
    of the base; for a URL also the name of its model. `verbatim` counts what greedy decoding brings back, however
    probable it was. `options` are those of `memlaw.recall`, such as adapter="DIR", or, for a URL, of `memlaw.verify`.
    No target text is in the message. Raises the errors of these functions, too.
    """
    from memlaw import api
    from memlaw.model.files import BUNDLED

    if isinstance(model, str):
        report = api.verify(model, facts, BUNDLED if tokenizer is None else tokenizer, **options).report
    elif tokenizer is None:
        raise ConfigError("A model in memory needs its tokenizer: assert_recalled(model, facts, tokenizer).")
    else:
        report = api.recall(model, tokenizer, facts, **options)
    failures = list(_failures(report, verbatim=verbatim))
    if failures:
        more = f"\n... and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
        what = "recalled verbatim" if verbatim else "certified"
        listed = "\n".join(failures[:SHOWN])
        raise AssertionError(f"{len(failures)} of {report.records} facts are not {what}:\n{listed}{more}")


def _failures(report: RecallReport, *, verbatim: bool) -> Iterator[str]:
    for item in report.items:
        if not (item.exact if verbatim else item.certified):
            yield f"{item.id!r}: {item.why or 'it was not decoded.'}"
