"""Is a rank predicted to hold the facts? Findings for `memlaw check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from memlaw.adapter.info import load_info
from memlaw.adapter.on_model import placement_on
from memlaw.core.facts import EncodedFact
from memlaw.diagnosis.findings import Finding, Severity
from memlaw.model.base import Base
from memlaw.planning.for_facts import plan_for
from memlaw.planning.library import KnownLaw, adapt_law, nearest


def rank_findings(
    base: Base,
    encoded: Sequence[EncodedFact],
    adapter: Path | None,
    law: KnownLaw | None,
    rank: int | None,
    placement: str | None,
) -> Iterator[Finding]:
    """A finding if the law predicts that these facts need a higher rank: a warning if its whole interval is higher.

    `rank` and `placement` default to those of the adapter; without a rank there are no findings.
    """
    info = None if adapter is None else load_info(adapter)
    if info is not None:
        rank = info.rank if rank is None else rank
        placement = info.placement if placement is None else placement
    facts = [fact for fact in encoded if base.context is None or len(fact.ids) <= base.context]
    if rank is None or not facts:
        return
    where = placement_on(placement, base.model)
    where.check_rank(rank)
    plan = plan_for(
        base, facts, where, lambda context: nearest((), context) if law is None else adapt_law(law, context)
    )
    borrowed = " The law is borrowed from another model; `memlaw probe` gives this one its own."
    note = borrowed if plan.law.borrowed else ""
    severity: Severity = "warning" if plan.rank.low is None or rank < plan.rank.low else "info"
    if plan.reason is not None:
        yield Finding(
            severity,
            None,
            "no-rank-fits",
            f"{plan.reason}{note}",
            "Adapt more modules or layers (--placement all-linear), or split the facts over several adapters.",
        )
    elif plan.rank.value is not None and rank < plan.rank.value:
        high = "or more" if plan.rank.high is None else f"to {plan.rank.high}"
        yield Finding(
            severity,
            None,
            "rank-too-small",
            f"At {where} the law predicts that recalling these {plan.tokens:,} target tokens needs rank "
            f"{plan.rank.value} (95%: {plan.rank.low} {high}), but the rank is {rank}.{note}",
            f"Train at rank {plan.rank.value} or slightly higher.",
        )
