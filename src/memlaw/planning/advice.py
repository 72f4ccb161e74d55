"""Scale or refine? Which lever would bring a memory set to recall, and what speaks for it. No torch, no model.

Recall fails in two ways (arXiv 2605.30260). An adapter too small leaves tokens disordered everywhere: only more
parameters help, or fewer facts. One that is large enough leaves a few stubborn tokens, each of which spoils its record:
there, training decides. Which of the two it is shows in the law, in the ordered share over the steps, and in how the
stubborn tokens lie among the records; what no training can mend shows in the findings of `memlaw check`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from memlaw.core.config import TrainConfig
from memlaw.core.recall import RecallReport, RecordRecall
from memlaw.diagnosis.verdicts import stubborn_positions

if TYPE_CHECKING:
    from memlaw.diagnosis.findings import Finding
    from memlaw.planning.result import Plan

Lever = Literal["data", "tokens", "rank", "placement", "split", "steps", "method"]

UNREACHABLE = "unreachable-token"
"""The findings whose positions no adapter below the head can bring to p > 1/2."""

FEW = 0.1
"""Share of stubborn tokens up to which they count as few: the adapter holds the rest."""

MARGIN = 0.1
"""Nats under ln 2 that keep a recalled token from sinking back; the default of `memlaw train`."""

_RISING = 0.01
"""Share of the tokens by which the last fifth of the steps must be better than the fifth before it."""

_PATIENCE = 3.0
"""Budgets that may be added at the pace of the last fifth; a set that would need more is not short of steps."""

_WIDEST = "all-linear"


@dataclass(frozen=True)
class Advice:
    """One lever: why it should help, and how to pull it."""

    lever: Lever
    evidence: str
    """What speaks for it, in numbers."""
    do: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What `memlaw.train` is to be given besides what it was given; empty where training it again is not the advice."""

    def __str__(self) -> str:
        return f"{self.do} {self.evidence}"


def advise(
    report: RecallReport,
    *,
    curve: Sequence[float] = (),
    plan: Plan | None = None,
    findings: Sequence[Finding] = (),
    rank: int | None = None,
    placement: str | None = None,
    config: TrainConfig | None = None,
) -> tuple[Advice, ...]:
    """What would help, the most promising lever first; nothing where every fact is recalled with margin to spare.

    Args:
        report: the recall of the set; decoded or not.
        curve: share of ordered target tokens at every step of the training, `StackProgress.ordered`.
        plan: of this set at this placement, by a law.
        findings: of `memlaw check` on this set.
        rank, placement, config: with which the adapter was trained, as far as known.
    """
    case = _Case(report, tuple(curve), plan, tuple(findings), rank, placement, config)
    if not case.failing:
        return ()
    scale = [*_rank(case), *_placement(case), *_split(case)]
    refine = [*_method(case), *_steps(case)] if case.spread_thin else [*_steps(case), *_method(case)]
    bigger_first = case.at_the_edge or (case.beyond_capacity and not case.spread_thin)
    return (*_data(case), *_tokens(case), *(scale + refine if bigger_first else refine + scale))


@dataclass(frozen=True)
class _Case:
    """All that is known, and what every lever asks of it."""

    report: RecallReport
    curve: tuple[float, ...]
    plan: Plan | None
    findings: tuple[Finding, ...]
    rank: int | None
    placement: str | None
    config: TrainConfig | None

    @cached_property
    def failing(self) -> tuple[RecordRecall, ...]:
        """Records that are not certified, or, where nothing was decoded, not ordered throughout."""
        return tuple(i for i in self.report.items if (i.margin <= 0 if i.certified is None else not i.certified))

    @cached_property
    def faults(self) -> tuple[Finding, ...]:
        """Errors of the whole set or of failing records, other than that tokens are unreachable."""
        about = {None, *(item.id for item in self.failing)}
        return tuple(f for f in self.findings if f.severity == "error" and f.record in about and f.code != UNREACHABLE)

    @cached_property
    def lost(self) -> dict[str, frozenset[int]]:
        """Failing record -> its stubborn tokens that no adapter can order; records without are left out."""
        never = {f.record: f.positions for f in self.findings if f.code == UNREACHABLE}
        known = {i.id: {*never.get(i.id, ()), *(i.tokens.unreachable or ())} for i in self.failing}
        return _with_any({i.id: frozenset(stubborn_positions(i)) & known[i.id] for i in self.failing})

    @cached_property
    def stubborn(self) -> dict[str, frozenset[int]]:
        """Failing record -> its stubborn tokens that an adapter could order; records without are left out."""
        return _with_any(
            {i.id: frozenset(stubborn_positions(i)) - self.lost.get(i.id, frozenset()) for i in self.failing}
        )

    @property
    def tokens(self) -> int:
        """Stubborn tokens that an adapter could order."""
        return sum(map(len, self.stubborn.values()))

    @property
    def few(self) -> bool:
        return self.tokens <= FEW * self.report.tokens

    @property
    def spread_thin(self) -> bool:
        """Whether few tokens are stubborn while the training went on with all of them, as far as known."""
        return self.few and (self.config is None or self.config.method == "sft")

    @property
    def pace(self) -> tuple[float, float] | None:
        """Mean ordered share over the last fifth but one of the steps and over the last; None for less than a curve."""
        fifth = len(self.curve) // 5
        return (fmean(self.curve[-2 * fifth : -fifth]), fmean(self.curve[-fifth:])) if fifth else None

    @property
    def budgets_missing(self) -> float:
        """How many budgets of steps more would order every token at the pace of the last fifth; infinite if flat."""
        if self.pace is None or self.pace[1] - self.pace[0] < _RISING:
            return math.inf
        before, now = self.pace
        return (1 - now) / (now - before) / 5

    @property
    def rising(self) -> bool:
        return self.budgets_missing <= _PATIENCE

    @property
    def nowhere(self) -> bool:
        """Whether the law names no rank that this placement could use."""
        return self.plan is not None and self.plan.rank.value is None

    @property
    def beyond_capacity(self) -> bool:
        """Whether the law puts the set past what this rank holds."""
        if self.plan is None or self.rank is None:
            return self.nowhere
        return self.nowhere or self.rank < (self.plan.rank.value or 0)

    @property
    def at_the_edge(self) -> bool:
        """Whether few tokens stay stubborn though training went for them alone, with a margin: what one gains, another
        loses."""
        refined = self.config is not None and self.config.method != "sft" and self.config.margin >= MARGIN
        return self.few and refined and not self.rising

    @property
    def exhausted(self) -> bool:
        """Whether a higher rank is not the answer: none is left, or the law was content with less than this one."""
        if self.nowhere:
            return True
        if self.plan is None or self.rank is None or self.rising:
            return False
        content = self.plan.rank.high is not None and self.rank > self.plan.rank.high and self.pace is not None
        return (content and not self.few) or (
            self.rank >= self.plan.largest_rank and (self.at_the_edge or not self.few)
        )


def _data(case: _Case) -> Iterator[Advice]:
    if case.faults:
        codes = ", ".join(sorted({fault.code for fault in case.faults}))
        records = len({fault.record for fault in case.faults} - {None})
        where = _of(records, "failing record") if records else "the set"
        evidence = f"`memlaw check` has errors ({codes}) on {where}, which no training mends."
        yield Advice("data", evidence, case.faults[0].fix)


def _tokens(case: _Case) -> Iterator[Advice]:
    if case.lost:
        yield Advice(
            "tokens",
            f"{_of(sum(map(len, case.lost.values())), 'stubborn token')} in {_of(len(case.lost), 'record')} cannot get "
            "p > 1/2 from the frozen head, whatever the adapter.",
            "Word those targets otherwise, or train the head as well (PEFT: modules_to_save=['lm_head']).",
        )


def _steps(case: _Case) -> Iterator[Advice]:
    if not case.tokens:
        return
    if case.rising and case.pace is not None:
        before, now = case.pace
        steps = max(2 * len(case.curve), math.ceil(len(case.curve) * (1 + case.budgets_missing)))
        yield Advice(
            "steps",
            f"The ordered share was still rising, from {before:.1%} to {now:.1%} over the last fifth of "
            f"{len(case.curve):,} steps.",
            f"Train for {steps:,} steps.",
            {"steps": steps},
        )
    elif case.pace is None and not case.few and _held(case):
        settings = {} if case.config is None else {"steps": 2 * case.config.steps}
        yield Advice(
            "steps",
            f"The law asks for rank {_planned(case)} and the adapter has {case.rank}, yet {_stubborn_share(case)}: the "
            "training fell short, not the adapter.",
            "Train for twice the steps.",
            settings,
        )


def _held(case: _Case) -> bool:
    """Whether the law says that this rank holds the set."""
    return case.plan is not None and case.rank is not None and not case.beyond_capacity


def _method(case: _Case) -> Iterator[Advice]:
    beyond_help = case.lost.keys() | {fault.record for fault in case.faults}
    reachable = [item for item in case.failing if item.id not in beyond_help]
    if not reachable or not case.few:
        return
    if not case.tokens:
        margin = max(MARGIN, 2 * case.report.tolerance)
        yield Advice(
            "method",
            f"Every token is ordered, but {_of(len(reachable), 'record')} of {case.report.records:,} by less than the "
            f"{case.report.tolerance:.2g} nats that {case.report.dtype} needs, or decoding differs.",
            f"Train until recalled with a margin of {margin:.2g} nats.",
            {"until": "recalled", "margin": margin},
        )
        return
    evidence = _few_stubborn(case)
    if case.config is None or case.config.method == "sft":
        yield Advice(
            "method",
            evidence,
            f"Train on the tokens not yet recalled, until all are (--method ot --until recalled --margin {MARGIN:g}).",
            {"method": "ot", "until": "recalled", "margin": MARGIN},
        )
    elif case.config.margin < MARGIN:
        yield Advice(
            "method",
            f"{evidence} Trained without a margin, tokens sink back as soon as they pass one half.",
            f"Ask for a margin (--until recalled --margin {MARGIN:g}).",
            {"until": "recalled", "margin": MARGIN},
        )
    elif case.config.focus == 0:
        yield Advice(
            "method",
            evidence,
            "Put the weight on the records that lack fewest: focus=1.",
            {"focus": 1.0},
        )


def _rank(case: _Case) -> Iterator[Advice]:
    if case.exhausted or not case.tokens:
        return
    if case.beyond_capacity or (case.rank is None and case.plan is not None):
        yield _at_rank(case, _above(case), _law_asks(case))
    elif case.at_the_edge and case.rank is not None:
        edge = f"{_few_stubborn(case)} Trained on alone, with a margin, they still are: the adapter is full."
        yield _at_rank(case, max(math.ceil(1.5 * case.rank), _above(case)), edge)
    elif case.rising or (case.few and not case.at_the_edge):
        return
    elif case.rank is None:
        evidence = _few_stubborn(case) if case.few else f"{_stubborn_share(case)}."
        yield Advice("rank", evidence, "Ask `memlaw plan` which rank the set needs.")
    elif case.pace is not None:
        before, now = case.pace
        flat = f"The ordered share is low and hardly rises: {before:.1%}, then {now:.1%} over the last fifth."
        yield _at_rank(case, max(2 * case.rank, _above(case)), flat)
    elif case.plan is None:
        yield _at_rank(case, 2 * case.rank, f"At rank {case.rank}, {_stubborn_share(case)}.")


def _at_rank(case: _Case, rank: int, evidence: str) -> Advice:
    most = case.plan.largest_rank if case.plan is not None else rank
    return Advice("rank", evidence, f"Train at rank {min(rank, most)}.", {"rank": min(rank, most)})


def _above(case: _Case) -> int:
    """Half-way, in ratio, from the law's rank to the end of its interval: at the rank itself training takes longest."""
    if case.plan is None or case.plan.rank.value is None:
        return 0
    value = case.plan.rank.value
    high = case.plan.rank.high or min(4 * value, case.plan.largest_rank)
    return math.ceil(math.sqrt(value * high))


def _placement(case: _Case) -> Iterator[Advice]:
    if case.tokens and case.exhausted and case.placement != _WIDEST:
        yield Advice(
            "placement",
            _why_exhausted(case),
            f"Adapt more modules: --placement {_WIDEST}, or the same modules in more layers.",
            {"placement": _WIDEST},
        )


def _split(case: _Case) -> Iterator[Advice]:
    if case.tokens and (case.exhausted or case.beyond_capacity):
        many = case.report.records > 1
        whole = f"the {case.report.records:,} records" if many else "the text into two facts,"
        yield Advice(
            "split",
            _why_exhausted(case) if case.exhausted else _law_asks(case),
            f"Split {whole} over two adapters of this rank, and load the one that has what is asked for.",
        )


def _law_asks(case: _Case) -> str:
    has = "" if case.rank is None else f"; the adapter has {case.rank}"
    return f"The law asks for rank {_planned(case)}{has}: {_stubborn_share(case)}."


def _planned(case: _Case) -> str:
    if case.plan is None or case.plan.rank.value is None:
        return "beyond any"
    high = case.plan.rank.high
    return f"{case.plan.rank.value} ({case.plan.rank.low} to {'any' if high is None else high})"


def _why_exhausted(case: _Case) -> str:
    if case.plan is not None and case.plan.reason is not None:
        return case.plan.reason
    enough = "the most these modules can use"
    if case.plan is not None and case.rank is not None and case.rank < case.plan.largest_rank:
        enough = f"more than the law asks for, {_planned(case)}"
    return f"Rank {case.rank} is {enough}, and still {_stubborn_share(case)}."


def _few_stubborn(case: _Case) -> str:
    alone = sum(len(positions) == 1 for positions in case.stubborn.values())
    return (
        f"{_of(case.tokens, 'stubborn token')}, {case.tokens / case.report.tokens:.1%} of all, "
        f"{'holds' if case.tokens == 1 else 'hold'} {_of(len(case.stubborn), 'record')} of {case.report.records:,}; "
        f"{alone:,} of these {'has' if alone == 1 else 'have'} just one."
    )


def _stubborn_share(case: _Case) -> str:
    return f"{case.tokens / case.report.tokens:.0%} of the tokens have p <= 1/2"


def _with_any(positions: Mapping[str, frozenset[int]]) -> dict[str, frozenset[int]]:
    return {name: found for name, found in positions.items() if found}


def _of(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
