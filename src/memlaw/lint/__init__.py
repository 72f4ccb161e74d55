"""What would keep these facts from being recalled: said before any training, as findings and not as errors.

Four kinds of rules, each a function from what is known to findings: how facts become tokens (`tokens`), how they are
asked for in a chat (`chat`), prompts that lie too close together (`keys`), and what the base, an adapter and a rank
allow (`model`). Whatever makes a memory set unreadable stays an error of `memlaw.data`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memlaw.api import Facts, memory_set_of
from memlaw.data import border_merges, target_tokens
from memlaw.errors import ConfigError
from memlaw.findings import SEVERITIES, CheckReport, Finding
from memlaw.laws import KnownLaw
from memlaw.lint.chat import chat_findings
from memlaw.lint.keys import key_findings
from memlaw.lint.model import adapter_findings, base_findings, rank_findings, reach_findings
from memlaw.lint.tokens import encodable, set_findings, token_findings
from memlaw.model import Base, wrap
from memlaw.records import MemorySet

__all__ = ["check", "check_on"]


def check(
    model: Any,
    tokenizer: Any,
    facts: Facts,
    *,
    adapter: str | os.PathLike[str] | None = None,
    law: KnownLaw | None = None,
    rank: int | None = None,
    placement: str | None = None,
) -> CheckReport:
    """What would keep `facts` from being recalled by this model, with this adapter or at this rank.

    Nothing is trained and nothing changed. The rank, by default that of an adapter which memlaw wrote, is judged by
    `law` (`memlaw.workspace.known_law`), by default the borrowed one. Raises DataError for facts that cannot be read,
    AdapterError for an adapter that cannot be, ConfigError for a law with no rank to judge.
    """
    base = wrap(model, tokenizer)
    memory_set = memory_set_of(base, facts)
    return check_on(base, memory_set, adapter=adapter, law=law, rank=rank, placement=placement)


def check_on(
    base: Base,
    memory_set: MemorySet,
    *,
    adapter: str | os.PathLike[str] | None = None,
    law: KnownLaw | None = None,
    rank: int | None = None,
    placement: str | None = None,
) -> CheckReport:
    """`check`, on a base and facts already loaded."""
    if law is not None and rank is None and adapter is None:
        raise ConfigError("A law judges a rank, and none was given. Give a rank (--rank) or an adapter (--adapter).")
    encoded = encodable(memory_set, base.tokenizer)
    merging = border_merges(memory_set, base.tokenizer)

    def findings() -> Iterator[Finding]:
        yield from base_findings(base)
        yield from set_findings(memory_set, base.tokenizer, merging)
        yield from chat_findings(memory_set, base.tokenizer)
        yield from token_findings(memory_set, encoded, base, merging)
        yield from key_findings(memory_set, encoded)
        yield from reach_findings(base, encoded)
        directory = None if adapter is None else Path(adapter)
        if directory is not None:
            yield from adapter_findings(base, memory_set, encoded, directory)
        yield from rank_findings(base, encoded, directory, law, rank, placement)

    found = sorted(findings(), key=lambda finding: SEVERITIES.index(finding.severity))
    return CheckReport(len(memory_set.facts), target_tokens(encoded), tuple(found))
