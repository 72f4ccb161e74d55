"""Scale or refine? Which lever would make a memory set recallable, and the evidence for it. No torch, no model.

Recall fails in two ways (arXiv 2605.30260). An adapter that is too small leaves stubborn tokens everywhere: only more
parameters or fewer facts help. One that is large enough leaves a few stubborn tokens, each of which spoils its record:
only better training helps. A training that raised the loss says nothing of either: only a lower learning rate helps.
The law, the share of ordered tokens over the steps and the spread of stubborn tokens over
the records tell the two apart; what training cannot fix shows in the findings of `memlaw check`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from memlaw.adapter.info import Curve
from memlaw.adapter.placement import ALL_LINEAR
from memlaw.core.config import TrainConfig
from memlaw.core.precision import LARGEST_MARGIN, MARGINS, QUANTISED
from memlaw.core.recall import RecallReport, RecordRecall
from memlaw.diagnosis.verdicts import stubborn_positions
from memlaw.training.divergence import SMALLER

if TYPE_CHECKING:
    from memlaw.diagnosis.findings import Finding
    from memlaw.planning.result import Plan

Lever = Literal["data", "tokens", "learning_rate", "rank", "placement", "split", "steps", "method"]

UNREACHABLE = "unreachable-token"
"""Code of the findings whose positions no adapter below the head can bring to p > 1/2."""

FEW = 0.1
"""Share of stubborn tokens up to which they count as few: the adapter holds all the others."""

MARGIN = MARGINS["float32"]
"""Nats below ln 2 that keep a recalled token from sinking back; the default of `memlaw train`."""

_MORE = 0.1
"""Nats to add where the margin for a precision was not enough."""

_RISING = 0.01
"""Rise of the ordered share, between the last two fifths of the steps, above which it is no longer flat."""

_PATIENCE = 3.0
"""Additional budgets worth spending at the pace of the last fifth; beyond that, steps are not what is missing."""


@dataclass(frozen=True)
class History:
    """How an adapter was trained, as far as known."""

    rank: int | None = None
    placement: str | None = None
    config: TrainConfig | None = None
    steps: int | None = None
    """Steps taken; None: as many as `curve` has values."""
    curve: Curve = ()
    loss_init: float | None = None
    """Mean loss of the facts before training, nats per target token."""
    loss_final: float | None = None
    """The same after training; None with `diverged` if it is not known or not finite."""
    diverged: bool = False
    """Whether training ended as diverged."""


@dataclass(frozen=True)
class Advice:
    """One lever: what to do, and why it should help."""

    lever: Lever
    evidence: str
    """Why it should help, in numbers."""
    do: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `memlaw.train` to change; empty where the advice is not to train again."""

    def __str__(self) -> str:
        return f"{self.do} {self.evidence}"


OTHER_PROMPTS = Advice(
    "data",
    "What was recorded at its training does not match this set in a prompt, a target, an id, their order or --eos; one "
    "character, such as a date that a chat template prints, makes another prompt.",
    "The adapter was trained on other prompts or targets: recall exactly the facts it was trained on, or train it on "
    "these.",
)
"""For an adapter whose recorded facts are others: no other advice helps before this."""


def advise(
    report: RecallReport,
    history: History | None = None,
    *,
    plan: Plan | None = None,
    findings: Sequence[Finding] = (),
) -> tuple[Advice, ...]:
    """What would help, the most promising lever first; empty where every fact is recalled with margin to spare.

    Args:
        report: the recall of the set; decoded or not.
        history: how the adapter was trained, as far as known.
        plan: for this set at the adapter's placement, by a law.
        findings: of `memlaw check` on this set.
    """
    case = _Case(report, history or History(), plan, tuple(findings))
    if not case.failing:
        return ()
    return tuple(advice for lever in _by_promise(case) for advice in lever(case))


def failing(report: RecallReport) -> tuple[RecordRecall, ...]:
    """Records that are not certified, or, where nothing was decoded, that have a stubborn token."""
    return tuple(i for i in report.items if (i.margin <= 0 if i.certified is None else not i.certified))


_Lever = Callable[["_Case"], Iterator[Advice]]


@dataclass(frozen=True)
class _Case:
    """Everything known, and what the levers ask of it."""

    report: RecallReport
    history: History
    plan: Plan | None
    findings: tuple[Finding, ...]

    @property
    def rank(self) -> int | None:
        return self.history.rank

    @property
    def elsewhere(self) -> bool:
        """Whether the adapter was judged on other weights of the base than those it was trained on."""
        if self.history.config is None:
            return False
        trained_for = self.history.config.served_as
        return self.report.dtype not in trained_for if trained_for else self.report.dtype in QUANTISED

    @cached_property
    def failing(self) -> tuple[RecordRecall, ...]:
        return failing(self.report)

    @cached_property
    def faults(self) -> tuple[Finding, ...]:
        """Errors in the whole set or in failing records, except unreachable tokens."""
        about = {None, *(item.id for item in self.failing)}
        return tuple(f for f in self.findings if f.severity == "error" and f.record in about and f.code != UNREACHABLE)

    @cached_property
    def lost(self) -> dict[str, frozenset[int]]:
        """Failing record -> positions of its stubborn tokens that no adapter can order; never empty."""
        never = {f.record: f.positions for f in self.findings if f.code == UNREACHABLE}
        known = {i.id: {*never.get(i.id, ()), *(i.tokens.unreachable or ())} for i in self.failing}
        return _not_empty({i.id: frozenset(stubborn_positions(i)) & known[i.id] for i in self.failing})

    @cached_property
    def stubborn(self) -> dict[str, frozenset[int]]:
        """Failing record -> positions of its stubborn tokens that an adapter could order; never empty."""
        return _not_empty(
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
        """Whether few tokens are stubborn and, as far as known, training spread its weight over all of them."""
        return self.few and (self.history.config is None or self.history.config.method == "sft")

    @cached_property
    def pace(self) -> tuple[float, float] | None:
        """Mean ordered share over the last-but-one and over the last fifth of the steps; None where not recorded."""
        curve = self.history.curve
        fifth = len(curve) // 5
        last = [share for share in curve[len(curve) - 2 * fifth :] if share is not None]
        if not fifth or len(last) < 2 * fifth:
            return None
        return fmean(last[:fifth]), fmean(last[fifth:])

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.history.curve) if self.history.steps is None else self.history.steps

    @property
    def budgets_missing(self) -> float:
        """Additional budgets that would order every token at the pace of the last fifth; infinite if it is flat."""
        if self.pace is None or self.pace[1] - self.pace[0] < _RISING:
            return math.inf
        before, now = self.pace
        return (1 - now) / (now - before) / 5

    @property
    def rising(self) -> bool:
        return self.budgets_missing <= _PATIENCE

    @property
    def rose(self) -> bool:
        """Whether training made the loss larger, so that nothing else can be concluded from how it ended."""
        before, after = self.history.loss_init, self.history.loss_final
        return self.history.diverged or (before is not None and after is not None and after > before)

    @property
    def unplaceable(self) -> bool:
        """Whether, by the law, no rank at this placement holds the set."""
        return self.plan is not None and self.plan.rank.value is None

    @property
    def beyond_capacity(self) -> bool:
        """Whether, by the law, this rank is too small for the set."""
        if self.plan is None or self.rank is None:
            return self.unplaceable
        return self.unplaceable or self.rank < (self.plan.rank.value or 0)

    @property
    def at_the_edge(self) -> bool:
        """Whether few tokens stay stubborn although training aimed at them alone, with a margin: what one token gains,
        another loses."""
        config = self.history.config
        refined = config is not None and config.method != "sft" and config.margin >= MARGIN
        return self.few and refined and not self.rising

    @property
    def exhausted(self) -> bool:
        """Whether a higher rank will not help: it is the highest already, or above what the law asks for."""
        if self.unplaceable:
            return True
        if self.plan is None or self.rank is None or self.rising:
            return False
        ample = self.plan.rank.high is not None and self.rank > self.plan.rank.high and self.pace is not None
        return (ample and not self.few) or (self.rank >= self.plan.largest_rank and (self.at_the_edge or not self.few))


def _by_promise(case: _Case) -> tuple[_Lever, ...]:
    """All levers, those most likely to help first."""
    if case.elsewhere:
        return (_data, _weights)
    if case.rose:
        return (_data, _tokens, _learning_rate)
    scale, refine = (_rank, _placement, _split), (_method, _steps) if case.spread_thin else (_steps, _method)
    scale_first = case.at_the_edge or (case.beyond_capacity and not case.spread_thin)
    return (_data, _tokens, *(scale + refine if scale_first else refine + scale))


def _data(case: _Case) -> Iterator[Advice]:
    if case.faults:
        codes = ", ".join(sorted({fault.code for fault in case.faults}))
        records = len({fault.record for fault in case.faults} - {None})
        where = _count(records, "failing record") if records else "the set"
        evidence = f"`memlaw check` reports errors ({codes}) for {where}, which training cannot fix."
        yield Advice("data", evidence, case.faults[0].fix)


def _weights(case: _Case) -> Iterator[Advice]:
    judged, config = case.report.dtype, case.history.config
    trained_for = config.served_as if config else ()
    wanted = (*trained_for, judged)
    place = f"of {' and '.join(trained_for)}" if trained_for else "as they were loaded"
    there = f", or judge it where it was trained for (--as {trained_for[0]})" if trained_for else ""
    yield Advice(
        "method",
        f"It was trained on the weights {place} and judged on those of {judged}, which move tokens by more than any "
        "margin covers.",
        f"Train for the precision in which it is served (--for {','.join(wanted)}){there}.",
        {"served_as": wanted},
    )


def _tokens(case: _Case) -> Iterator[Advice]:
    if case.lost:
        yield Advice(
            "tokens",
            f"{_count(sum(map(len, case.lost.values())), 'stubborn token')} in {_count(len(case.lost), 'record')} "
            "cannot reach p > 1/2 with the frozen head, whatever the adapter.",
            "Reword those targets, or train the head as well (PEFT: modules_to_save=['lm_head']).",
        )


def _learning_rate(case: _Case) -> Iterator[Advice]:
    before, after, config = case.history.loss_init, case.history.loss_final, case.history.config
    evidence = "Training diverged."
    if before is not None and after is not None:
        evidence = f"Training raised the loss from {before:.3g} to {after:.3g} nats per token."
    evidence += " Its steps were too long; what the adapter could hold remains unknown."
    if config is None:
        yield Advice("learning_rate", evidence, "Train with a lower learning rate, a quarter of what it was or less.")
        return
    lower = float(f"{config.learning_rate / SMALLER:.3g}")
    yield Advice(
        "learning_rate",
        evidence,
        f"Train with a quarter of the learning rate (--learning-rate {lower:g}).",
        {"learning_rate": lower},
    )


def _steps(case: _Case) -> Iterator[Advice]:
    if not case.tokens:
        return
    if case.rising and case.pace is not None:
        before, now = case.pace
        steps = max(2 * case.steps, math.ceil(case.steps * (1 + case.budgets_missing)))
        yield Advice(
            "steps",
            f"The ordered share was still rising, from {before:.1%} to {now:.1%} over the last fifth of "
            f"{case.steps:,} steps.",
            f"Train for {steps:,} steps.",
            {"steps": steps},
        )
    elif case.pace is None and not case.few and _held(case):
        config = case.history.config
        yield Advice(
            "steps",
            f"{_law_asks(case)} Training fell short, not the adapter.",
            "Train for twice as many steps.",
            {} if config is None else {"steps": 2 * config.steps},
        )


def _held(case: _Case) -> bool:
    """Whether, by the law, this rank holds the set."""
    return case.plan is not None and case.rank is not None and not case.beyond_capacity


def _method(case: _Case) -> Iterator[Advice]:
    other_text = {item.id for item in case.failing if item.reason == "other_text"}
    unfixable = case.lost.keys() | other_text | {fault.record for fault in case.faults}
    fixable = [item for item in case.failing if item.id not in unfixable]
    if not fixable or not case.few:
        return
    if not case.tokens:
        yield _more_margin(case, len(fixable))
    else:
        yield from _refinement(case)


def _more_margin(case: _Case, records: int) -> Advice:
    dtype, trained_with = case.report.dtype, case.history.config.margin if case.history.config else 0.0
    evidence = (
        f"Every token is ordered, but in {_count(records, 'record')} of {case.report.records:,} the margin is below "
        f"the {case.report.tolerance:.2g} nats that {dtype} needs, or decoding differs."
    )
    margin = MARGINS[dtype]
    if trained_with >= margin:
        margin = min(round(trained_with + _MORE, 2), LARGEST_MARGIN)
    if trained_with >= margin:
        return Advice("method", evidence, "Serve the model in float32: a larger margin cannot help.")
    flag = f" (--for {dtype})" if margin == MARGINS[dtype] else ""
    return Advice(
        "method",
        evidence,
        f"Train until recalled with a margin of {margin:g} nats{flag}.",
        {"until": "recalled", "margin": margin},
    )


def _refinement(case: _Case) -> Iterator[Advice]:
    """The next refinement of MemFT not used yet: stubborn tokens only, then a margin, then nearest records first."""
    config, evidence = case.history.config, _few_stubborn(case)
    if config is None or config.method == "sft":
        yield Advice(
            "method",
            evidence,
            f"Train only the tokens that are not recalled yet, until all are (--method ot --until recalled "
            f"--margin {MARGIN:g}).",
            {"method": "ot", "until": "recalled", "margin": MARGIN},
        )
    elif config.margin < MARGIN:
        yield Advice(
            "method",
            f"{evidence} Trained without a margin, tokens sink back as soon as they pass p = 1/2.",
            f"Train with a margin (--until recalled --margin {MARGIN:g}).",
            {"until": "recalled", "margin": MARGIN},
        )
    elif config.focus == 0:
        yield Advice(
            "method",
            evidence,
            "Put more weight on the records with the fewest stubborn tokens (focus=1 in Python).",
            {"focus": 1.0},
        )


def _rank(case: _Case) -> Iterator[Advice]:
    if case.exhausted or not case.tokens:
        return
    if case.beyond_capacity or (case.rank is None and case.plan is not None):
        yield _at_rank(case, _above(case), _law_asks(case))
    elif case.at_the_edge and case.rank is not None:
        edge = f"{_few_stubborn(case)} They stay stubborn though trained alone, with a margin: the adapter is full."
        yield _at_rank(case, max(math.ceil(1.5 * case.rank), _above(case)), edge)
    elif case.rising or (case.few and not case.at_the_edge):
        return
    elif case.rank is None:
        evidence = _few_stubborn(case) if case.few else f"{_stubborn_share(case)}."
        yield Advice("rank", evidence, "Run `memlaw plan` to find the rank the set needs.")
    elif case.pace is not None:
        before, now = case.pace
        flat = (
            f"The ordered share is low and hardly rises: {before:.1%}, then {now:.1%} in the last fifth of the steps."
        )
        yield _at_rank(case, max(2 * case.rank, _above(case)), flat)
    elif case.plan is None:
        yield _at_rank(case, 2 * case.rank, f"At rank {case.rank}, {_stubborn_share(case)}.")


def _at_rank(case: _Case, rank: int, evidence: str) -> Advice:
    most = case.plan.largest_rank if case.plan is not None else rank
    return Advice("rank", evidence, f"Train at rank {min(rank, most)}.", {"rank": min(rank, most)})


def _above(case: _Case) -> int:
    """Geometric mean of the law's rank and the upper end of its interval: at the law's rank itself, the set only just
    fits and training takes longest. 0 without a rank."""
    if case.plan is None or case.plan.rank.value is None:
        return 0
    value = case.plan.rank.value
    high = case.plan.rank.high or min(4 * value, case.plan.largest_rank)
    return math.ceil(math.sqrt(value * high))


def _placement(case: _Case) -> Iterator[Advice]:
    if case.tokens and case.exhausted and case.history.placement != ALL_LINEAR:
        yield Advice(
            "placement",
            _why_exhausted(case),
            f"Adapt more modules: --placement {ALL_LINEAR}, or the same modules in more layers.",
            {"placement": ALL_LINEAR},
        )


def _split(case: _Case) -> Iterator[Advice]:
    if case.tokens and (case.exhausted or case.beyond_capacity):
        records = case.report.records
        whole = f"the {records:,} records" if records > 1 else "the text into two facts,"
        yield Advice(
            "split",
            _why_exhausted(case) if case.exhausted else _law_asks(case),
            f"Split {whole} over two adapters of this rank, and load the one that holds the fact in question.",
        )


def _law_asks(case: _Case) -> str:
    source = "A law borrowed from another model or placement" if case.plan and case.plan.law.borrowed else "The law"
    has = "" if case.rank is None else f"; the adapter has {case.rank}"
    return f"{source} asks for rank {_planned(case)}{has}: {_stubborn_share(case)}."


def _planned(case: _Case) -> str:
    if case.plan is None or case.plan.rank.value is None:
        return "beyond the largest"
    high = case.plan.rank.high
    return f"{case.plan.rank.value} (95%: {case.plan.rank.low} {'or more' if high is None else f'to {high}'})"


def _why_exhausted(case: _Case) -> str:
    if case.plan is not None and case.plan.reason is not None:
        return case.plan.reason
    largest = "the highest these modules can use"
    if case.plan is not None and case.rank is not None and case.rank < case.plan.largest_rank:
        largest = f"more than the law asks for, {_planned(case)}"
    return f"Rank {case.rank} is {largest}, and yet {_stubborn_share(case)}."


def _few_stubborn(case: _Case) -> str:
    alone = sum(len(positions) == 1 for positions in case.stubborn.values())
    return (
        f"{_count(case.tokens, 'stubborn token')} ({case.tokens / case.report.tokens:.1%} of all) "
        f"{'spoils' if case.tokens == 1 else 'spoil'} {_count(len(case.stubborn), 'record')} of "
        f"{case.report.records:,}; {alone:,} of these {'has' if alone == 1 else 'have'} just one."
    )


def _stubborn_share(case: _Case) -> str:
    return f"{case.tokens / case.report.tokens:.0%} of the tokens have p <= 1/2"


def _not_empty(positions: Mapping[str, frozenset[int]]) -> dict[str, frozenset[int]]:
    return {record: places for record, places in positions.items() if places}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
