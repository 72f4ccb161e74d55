"""Results in a person's words, line by line: what the commands print where no JSON was asked for."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlaw.bits import ANCHORS, memory_bits
from memlaw.diagnosis import Patterns, patterns, stubborn_counts, worst

if TYPE_CHECKING:
    from memlaw.findings import CheckReport, Finding, Severity
    from memlaw.journal import ProbeStatus, VerifyReport
    from memlaw.law import Comparison, Form, Holdout, LawFit
    from memlaw.plan import Capacity, Cost, Plan, RankChance, RankRange
    from memlaw.records import CellResult, Estimate, RecallReport, RecordRecall
    from memlaw.training import Trained

SHOWN = 5
"""Worst records, or failed cells, listed."""

WIDTH = 96
"""Columns a paragraph may take."""

_RISE = 0.08
"""Probability that a rank must add to be listed."""
_ALL_BUT_SURE = 0.99


def train_lines(trained: Trained, out: Path) -> Iterator[str]:
    """Make it stick."""
    margin = f" by {trained.config.margin:g} nats or more" if trained.config.margin else ""
    ended = f"every target token is ordered{margin}" if trained.recalled else "some target tokens are still stubborn"
    yield f"{out}: rank {trained.rank} at {trained.placement}, {_count(trained.parameters, 'parameter')}."
    yield (
        f"{_count(trained.steps, 'step')} in {trained.seconds:.0f} s, loss {trained.loss_init:.3f} -> "
        f"{trained.loss_final:.4f} nats a token; {ended}."
    )


def recall_lines(report: RecallReport, advice: Sequence[str] = ()) -> Iterator[str]:
    """Did it stick? And, in sentences of `advice`, what to do next."""
    records = _count(report.records, "record")
    yield f"{records}, {_count(report.tokens, 'target token')}, judged in {report.dtype}."
    yield ""
    yield from _rows({**_verbatim(report), **_probabilities(report), **_causes(patterns(report))})
    stubborn = dict(zip((item.id for item in report.items), stubborn_counts(report), strict=True))
    failing = {item.id for item in report.items if item.exact is False or stubborn[item.id]}
    if failing:
        yield ""
        yield "Furthest from recall (positions count from 0):"
        listed = [item for item in worst(report, SHOWN) if item.id in failing]
        yield from _rows({_printable(item.id): _failure(item, stubborn[item.id]) for item in listed})
    if len(failing) > SHOWN:
        yield f"  ... and {len(failing) - SHOWN:,} more"
    for sentence in advice:
        yield ""
        yield from _paragraph(sentence)


def check_lines(report: CheckReport) -> Iterator[str]:
    """The findings in a person's words, those of one kind and wording together."""
    counts = ", ".join(f"{number:,} {severity}" for severity, number in report.counts.items())
    yield f"Facts: {report.records:,}, target tokens: {report.tokens:,}; {counts}."
    alike: dict[tuple[Severity, str, str], list[Finding]] = {}
    for finding in report.findings:
        alike.setdefault((finding.severity, finding.code, finding.fix), []).append(finding)
    for (severity, code, fix), findings in alike.items():
        named = [_printable(finding.record) for finding in findings if finding.record is not None]
        shown = ", ".join(named[:SHOWN]) + (f", ... ({len(named):,} facts)" if len(named) > SHOWN else "")
        yield ""
        yield f"{severity}: {code}" + (f": {shown}" if named else "")
        yield from _paragraph(findings[0].message, indent=2)
        yield from _paragraph(f"Fix: {fix}", indent=2)


def _verbatim(report: RecallReport) -> dict[str, str]:
    if report.acc_em is None or report.acc_token is None:
        return {"recalled verbatim": "not known: add --decode", "certified": "not known: add --decode"}
    exact, records = sum(item.exact is True for item in report.items), _count(report.records, "record")
    return {
        "recalled verbatim": f"{exact:,} of {records} ({report.acc_em:.1%}) by greedy decoding",
        "decoded right": f"{report.acc_token:.1%} of the tokens, position by position",
        "certified": f"{report.certified:,} of {records}",
    }


def _probabilities(report: RecallReport) -> dict[str, str]:
    return {
        "ordered": f"{report.ordered:,} of {_count(report.tokens, 'token')} have p > 1/2",
        "mean loss": f"{report.mean_loss:.4f} nats a token",
        "smallest margin": f"{report.min_margin:+.4f} nats (ln 2 less the largest loss of a token)",
    }


def _failure(item: RecordRecall, stubborn: int) -> str:
    doubt = "no token stubborn"
    if item.earliest_stubborn is not None:
        doubt = f"{stubborn:,} of {_count(item.length, 'token')} stubborn, the first at {item.earliest_stubborn}"
    return doubt if item.exact is None or item.why is None else f"{doubt}. {item.why}"


def _causes(found: Patterns) -> dict[str, str]:
    """What the failures have in common, as far as it was asked."""
    rows = {}
    if found.one_token_short:
        rows["one token short"] = f"{found.one_token_short:,} of {_count(found.failures or 0, 'failure')}"
    if found.unreachable:
        share = (
            "" if found.failures is None else f"; the first wrong token of {_count(found.unavoidable or 0, 'record')}"
        )
        rows["out of reach"] = f"{found.unreachable:,} of {_count(found.stubborn, 'stubborn token')}{share}"
    if (related := found.stubborn_vs_failure) is not None:
        rows["first failure"] = (
            f"follows the earliest stubborn token with Spearman {related.value:.2f} "
            f"(95%: {related.low:.2f} to {related.high:.2f})"
        )
    return rows


def fit_lines(law: LawFit, judged: Holdout | None = None) -> Iterator[str]:
    """The law with its doubts."""
    yield f"The {law.form} form, dL = {law.curve.formula}, on {_count(law.n, 'cell')}:"
    if law.parameters:
        yield f"  {'':<8}{'value':>10}{'+-':>12}    95% interval"
    for name, estimate in law.parameters.items():
        yield f"  {name:<8}{_doubtful(estimate)}"
    if law.r2 is not None and law.mape is not None:
        yield f"  R^2 {law.r2:.4f}, MAPE {law.mape:.2f}%"
    if judged is not None:
        yield (
            f"  held out {judged.held_out}: {_count(judged.cells, 'cell')}, MAPE {judged.mape:.2f}%, "
            f"{judged.coverage90:.0%} inside the 90% interval"
        )
    if law.status != "ok":
        yield from _paragraph(law.status, indent=2)
    for warning in law.warnings:
        yield from _paragraph(f"Note: {warning}", indent=2)


def comparison_lines(judged: Comparison, shown: Form | None = None) -> Iterator[str]:
    """How the other forms did than the one shown, by default the best, and why the best is the best."""
    shown = shown or judged.best.form
    for other in judged.fits:
        if other.form != shown and other.r2 is not None and other.mape is not None:
            yield f"The {other.form} form, beside it: R^2 {other.r2:.4f}, MAPE {other.mape:.2f}% on {other.n} cells."
    yield from _paragraph(judged.why)
    if shown != judged.best.form:
        yield from _paragraph(
            f"Saved is the {shown} form: it knows a ceiling, and plans are made close to it, where forms without one "
            "promise what cannot be."
        )


def _doubtful(estimate: Estimate) -> str:
    error = "unknown" if estimate.stderr is None else f"{estimate.stderr:.3g}"
    low, high = ("any" if bound is None else f"{bound:.4g}" for bound in (estimate.low, estimate.high))
    return f"{estimate.value:>10.4g}{error:>12}    {'unknown' if low == high == 'any' else f'{low} to {high}'}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """Will it fit?"""
    yield (
        f"{_count(plan.records, 'record')}, {_count(plan.tokens, 'target token')}: about {plan.bits:,.0f} bits, at "
        f"{plan.loss_memoryless:.2f} nats a token."
    )
    yield ""
    yield from _rows(_plan_rows(plan))
    for caveat in (*plan.caveats, plan.extrapolates):
        if caveat:
            yield ""
            yield from _paragraph(f"Note: {caveat}")
    if plan.lora_config is not None:
        yield ""
        yield from _call("LoraConfig", plan.lora_config)
    if plan.train is not None:
        yield ""
        yield from _command(plan.train)


def _plan_rows(plan: Plan) -> dict[str, str]:
    rows = {"rank": plan.reason or "no rank"}
    if plan.rank.value is not None:
        sure = "" if plan.sure is None else f"; 95% sure at {plan.sure}"
        rows["rank"] = f"{plan.rank.value}{_interval(plan.rank)} is predicted to meet the target, {plan.target}{sure}"
    if plan.split is not None:
        rows["several"] = (
            f"{_count(plan.split.adapters, 'adapter')} of rank {plan.split.rank_each} would, each for "
            f"{plan.split.tokens_each:,} of the target tokens"
        )
    if chances := _chances(plan):
        rows["chances"] = chances
    if plan.saturation.value is not None:
        rows["half-way"] = f"{plan.saturation.value}{_interval(plan.saturation)} brings the mean loss under ln 2"
    rows["most"] = f"{plan.largest_rank}, the most these modules can use"
    rows["rule of thumb"] = f"{plan.rule_of_thumb}, with as many adapter parameters as target tokens (to compare)"
    if plan.capacity is not None:
        rows[f"rank {plan.capacity.rank}"] = _capacity(plan.capacity)
    rows["loss needed"] = f"{plan.loss_needed.nats:.3g} nats, {plan.loss_needed.why}"
    if plan.cost is not None:
        rows["adapter"] = (
            f"{plan.cost.adapter_parameters:,} parameters, {_memory(plan.cost.adapter_bytes)} in float32; "
            f"{_memory(plan.cost.optimizer_bytes)} more to train it, for the gradient and AdamW"
        )
        if work := _work(plan.cost):
            rows["training"] = work
    quality = "" if plan.law.r2 is None else f" (R^2 {plan.law.r2:.4f})"
    rows["law"] = f"{plan.law.form} form on {_count(plan.law.n, 'cell')}{quality}: {plan.law.source}"
    if plan.law.near:
        rows["how near"] = " ".join(plan.law.near)
    return rows


def _chances(plan: Plan) -> str:
    """The ranks with which it rises, and the first that is all but sure; the largest where none is any good."""
    shown: list[RankChance] = []
    for chance in plan.probabilities:
        before = shown[-1].probability if shown else 0.0
        if chance.probability - before >= _RISE or before < _ALL_BUT_SURE <= chance.probability:
            shown.append(chance)
    return ", ".join(f"{chance.rank}: {chance.probability:.0%}" for chance in shown or plan.probabilities[-1:])


def _capacity(capacity: Capacity) -> str:
    full = "" if capacity.saturates is None else f"; its mean loss stays under ln 2 up to {capacity.saturates:,.0f}"
    return (
        f"holds about {capacity.tokens:,.0f} target tokens of this kind (95%: {capacity.low:,.0f} to "
        f"{capacity.high:,.0f}){full}"
    )


def _work(cost: Cost) -> str:
    """What training takes at most, as far as it is known."""
    known = []
    if cost.steps is not None:
        known.append(_count(cost.steps, "step"))
    if cost.training_flops is not None:
        known.append(f"{cost.training_flops:.1e} FLOP")
    if cost.seconds is not None:
        known.append(f"{cost.seconds:,.0f} s on this machine")
    return f"{', '.join(known)} at most" if known else ""


def laws_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The laws of a library, a paragraph each."""
    for row in rows:
        quality = "" if row["r2"] is None else f", R^2 {row['r2']:.4f}"
        yield f"{row['name']}: {row['form']} form on {_count(row['n'], 'cell')}{quality}"
        of = {key: row[key] for key in ("model", "placement", "data", "method", "date") if row[key] is not None}
        spans = {name: "{:,g} to {:,g}".format(*row[name]) for name in ("ranks", "lengths")}
        yield from _rows({**of, **spans} | ({} if row["status"] == "ok" else {"status": row["status"]}))


def _interval(rank: RankRange) -> str:
    if rank.low is None:
        return ""
    return f" (95%: {rank.low} {'or more' if rank.high is None else f'to {rank.high}'})"


def failure_lines(results: Iterable[CellResult]) -> Iterator[str]:
    """Which cells of a probe have no measurement, and why."""
    failed = [result for result in results if result.status != "finished"]
    for result in failed[:SHOWN]:
        cell = result.cell
        yield from _paragraph(
            f"rank {cell.rank}, length {cell.length}, {cell.train.method}, seed {cell.train.seed}: {result.status}. "
            f"{result.message[:1].upper()}{result.message[1:]}.",
            indent=2,
        )
    if len(failed) > SHOWN:
        yield f"  ... and {len(failed) - SHOWN:,} more"


def status_lines(found: ProbeStatus) -> Iterator[str]:
    """Where a probe stands."""
    yield f"{found.out}: {found.finished:,} of {_count(found.cells, 'cell')} finished."
    rows = {
        "diverged": f"{found.diverged:,}" if found.diverged else "",
        "failed": f"{found.failed:,}, to be tried again" if found.failed else "",
        "waiting": f"{found.waiting:,}" if found.waiting else "",
        "damaged": f"{found.damaged:,}; see `memlaw journal verify {found.out}`" if found.damaged else "",
        "packs": f"{found.packs.done:,} done, {found.packs.partly:,} partly, {found.packs.waiting:,} waiting",
        "in training": ", ".join(f"pack {at.pack} at step {at.step:,}" for at in found.checkpoints),
        "last activity": found.last_activity or "",
    }
    yield from _rows({name: text for name, text in rows.items() if text})
    for reason in found.reasons:
        yield from _paragraph(f"{_count(reason.cells, 'cell')} failed: {reason.message}", indent=2)


def verify_lines(found: VerifyReport) -> Iterator[str]:
    """The state of a journal's files."""
    state = "every file is intact" if found.intact else "not every file is intact"
    yield f"{found.out}: {found.finished:,} finished, {found.diverged:,} diverged, {found.failed:,} failed; {state}."
    for fault in (*found.damaged, *found.unreadable):
        yield from _paragraph(f"{fault.path}: {fault.why}", indent=2)
    if found.table != "current":
        yield f"  results.parquet is {found.table}: `memlaw journal rebuild {found.out}` writes it."
    for name, files in (("in quarantine", found.quarantined), ("left by killed writers", found.leftovers)):
        if files:
            yield f"  {name}: {_count(len(files), 'file')}"


def bits_lines(results: Iterable[CellResult]) -> Iterator[str]:
    """The densest memory of a probe; nothing where bits were not measured."""
    known = [(bits, result) for result in results if (bits := memory_bits(result)).bits_per_parameter is not None]
    if known:
        bits, result = max(known, key=lambda pair: pair[0].bits_per_parameter or 0.0)
        published = ", ".join(f"{anchor.range} ({anchor.name})" for anchor in ANCHORS)
        yield from _paragraph(
            f"At most {bits.bits_per_parameter:.3g} bits are stored per parameter of the adapter (rank "
            f"{result.cell.rank}, length {result.cell.length:,}: {bits.stored_bits:,.0f} bits); published: {published}."
        )


# --- layout ----------------------------------------------------------------------------------------------------------


def _rows(rows: Mapping[str, str]) -> Iterator[str]:
    """Names in one column, what is to be said about them in the next."""
    width = max(map(len, rows), default=0) + 2
    for name, text in rows.items():
        yield from _wrapped(text, f"  {name:<{width}}", " " * (width + 2))


def _paragraph(text: str, *, indent: int = 0) -> Sequence[str]:
    return _wrapped(text, " " * indent, " " * indent)


def _call(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """A call in Python, to paste."""
    yield from _wrapped(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})", "", "    ")


def _command(line: str) -> Iterator[str]:
    """A command to paste, going on in further lines where one is too narrow."""
    parts: list[str] = []
    for word in map(shlex.quote, shlex.split(line)):
        if word.startswith("--") or not parts:
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    row = parts[0]
    for part in parts[1:]:
        if len(f"{row} {part} \\") > WIDTH:
            yield f"{row} \\"
            row = "   "
        row += f" {part}"
    yield row


def _memory(size: int) -> str:
    """Bytes in decimal units."""
    return f"{size / 1e6:,.2f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _wrapped(text: str, first: str, then: str) -> Sequence[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=then, break_long_words=False, break_on_hyphens=False
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _printable(name: str) -> str:
    """Ids come from files, and a terminal obeys control characters."""
    return name if name.isprintable() else ascii(name)
