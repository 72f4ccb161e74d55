"""One self-contained HTML file that answers: will it fit, did it stick, which tokens did not?

Nothing is computed here that another module defines: records come in, sentences, tables and figures go out. The page
loads nothing, runs no script and forbids both by its content-security policy; every string of the user's is escaped.
Target text is sensitive: it is shown only with `show_text=True`, and then only the file's owner may read the file.
"""

from __future__ import annotations

import functools
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from memlaw import figures
from memlaw.diagnosis import is_ordered, position_counts, stubborn_counts, worst
from memlaw.errors import ConfigError, DataError, JournalError
from memlaw.figures import LawPredictor, Strip
from memlaw.law import SATURATED, Axis
from memlaw.records import LN2, CellResult, LawPoint, RecallReport, RecordRecall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST_RECORDS = 12
"""Records shown token by token, the worst first."""
OPEN_ROWS = 12
"""A table of cells longer than this starts folded (and is printed in full)."""

_PIXELS_PER_INCH = 104
"""At which two half-width figures fill the page."""

DASH = "\N{EN DASH}"
"""Stands for what is not known."""
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class FittedLaw:
    """One fitted form of the law and the points it is shown against."""

    summary: Mapping[str, Any]
    """As `LawFit.summary()`: form, status, n, r2, mape, parameters, holdout, axis, source."""
    points: Sequence[LawPoint]
    predictor: LawPredictor | None = None
    """Draws the lines; without it, or without parameters, only the points and the summary are shown."""
    label: str = ""
    """Which data was fitted, in words, where there is more than one."""

    @property
    def name(self) -> str:
        """What a column or sentence calls it."""
        return f"{self.form}, {self.label}" if self.label else self.form

    @property
    def form(self) -> str:
        """Its form, in words."""
        return f"{self.summary.get('form', 'unnamed')} form"

    @property
    def law(self) -> LawPredictor | None:
        """The predictor, if it has anything to predict with."""
        return self.predictor if self.summary.get("parameters") else None

    @property
    def axis(self) -> Axis:
        """What the law calls size."""
        return "parameters" if self.summary.get("axis") == "parameters" else "rank"


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that a report can show. Whatever is absent is left out, with a sentence that says how to get it."""

    title: str
    cells: Sequence[CellResult] = ()
    fits: Sequence[FittedLaw] = ()
    """The forms of the law, the one to be believed first: its lines are drawn, its R² stands at the top."""
    plan: Mapping[str, Any] | None = None
    """As `Plan.to_dict()`; at least records, tokens, bits and rank."""
    recall: RecallReport | None = None
    texts: Mapping[str, Sequence[str]] | None = None
    """Record id -> its target tokens as text, one string a token. Given only when the text may be shown."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Fingerprint of a memory set -> what a person calls it."""
    made: Mapping[str, str] = field(default_factory=dict)
    """How it was made: settings, versions, fingerprints, machine; label -> value."""
    commands: Sequence[str] = ()
    """Command lines that made it, in order."""


def write(content: ReportContent, path: str | os.PathLike[str], *, show_text: bool = False) -> None:
    """Render `content` into the file `path`, which is replaced whole or not at all.

    With `show_text` the file holds target texts, so its mode is 0600 from its first byte.

    Raises:
        JournalError: the file cannot be written.
        ConfigError, DataError: as `render`.
    """
    page = render(content, show_text=show_text)
    target = Path(path)
    scratch = target.with_name(f".memlaw-report-{secrets.token_hex(4)}")
    mode = 0o600 if show_text else 0o666
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        # A lone surrogate in an id has no UTF-8; as a character reference it is shown as a replacement mark.
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="xmlcharrefreplace", newline="\n") as file:
            file.write(page)
        scratch.replace(target)
    except OSError as error:
        raise JournalError(
            f"The report cannot be written to {target}: {error.strerror}. Its numbers are safe where they came from; "
            f"choose another file, or make room, and run `memlaw report` again."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def render(content: ReportContent, *, show_text: bool = False) -> str:
    """`content` as one HTML document; the same content gives the same bytes.

    Raises:
        ConfigError: `show_text` was asked for, but `content.texts` is None.
        DataError: the plan is none, or a record's text does not have one string for each of its target tokens.
    """
    if show_text and content.texts is None:
        raise ConfigError(
            "The report was asked to show target texts, but none were passed in. Give the memory set that was "
            "recalled, or leave out --show-text."
        )
    if content.plan is not None and (missing := {"records", "tokens", "bits", "rank"} - content.plan.keys()):
        raise DataError(
            f"The plan lacks {', '.join(sorted(missing))}, so it cannot say whether the facts fit. Write it again with "
            f"`memlaw plan --json`."
        )
    return _template().render(
        title=content.title,
        answers=[
            ("Will it fit?", _will_it_fit(content)),
            ("Did it stick?", _did_it_stick(content)),
            ("Which tokens did not?", _which_did_not(content.recall)),
        ],
        key_numbers=_key_numbers(content),
        families=_families(content),
        law=_law_view(content.fits),
        plan=None if content.plan is None else _plan_view(content.plan),
        recall=None if content.recall is None else _recall_view(content.recall, content.texts if show_text else None),
        made=content.made,
        commands=content.commands,
        shows_text=show_text,
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("memlaw"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=_number, nats=_nats, share=_share)
    return environment.get_template("report.html.j2")


# --- answers ---------------------------------------------------------------------------------------------------------


def _will_it_fit(content: ReportContent) -> str:
    if content.plan is not None:
        return _plan_sentence(content.plan)
    if not content.fits:
        return "Not known: no law was fitted, so no rank can be worked out. Probe a grid, then run memlaw fit."
    leading = content.fits[0]
    ranks, lengths = [p.rank for p in leading.points], [p.length for p in leading.points]
    over = (
        f" over ranks {min(ranks):g} to {max(ranks):g} and lengths {min(lengths):g} to {max(lengths):g}"
        if ranks
        else ""
    )
    return (
        f"Not asked: the law ({leading.name}) has R² {_number(leading.summary.get('r2'))}{over}, but no memory set was "
        f"planned with it. Run memlaw plan."
    )


def _plan_sentence(plan: Mapping[str, Any]) -> str:
    rank = plan["rank"]
    if rank.get("value") is None:
        answer = f"Not by any rank this law can vouch for: {_plan_size(plan)}."
    else:
        answer = f"Yes, at rank {_number(rank['value'])}{_interval(rank)}: {_plan_size(plan)}."
    doubts = (plan.get("reason"), plan.get("extrapolates"))
    return " ".join([answer, *(doubt for doubt in doubts if isinstance(doubt, str))])


def _plan_size(plan: Mapping[str, Any]) -> str:
    return f"{_count(plan['records'], 'record')}, {_count(plan['tokens'], 'target token')}"


def _interval(estimate: Mapping[str, Any]) -> str:
    """The 95% interval of an estimate that has one; a rank without an upper end may be beyond any."""
    low, high = estimate.get("low"), estimate.get("high")
    if low is None:
        return ""
    return f" (95 %: {_number(low)} {'and more' if high is None else f'to {_number(high)}'})"


def _did_it_stick(content: ReportContent) -> str:
    recall = content.recall
    if recall is None:
        return "Not known: no adapter was asked for its records. Run memlaw recall with --decode."
    if recall.certified is None:
        return (
            f"Not proven: {recall.ordered:,} of {_count(recall.tokens, 'token')} have p > 1/2, but nothing was "
            f"decoded, so nothing is certified. Run memlaw recall with --decode."
        )
    whole = _count(recall.records, "record")
    if recall.certified == recall.records:
        return (
            f"Yes. {'All ' if recall.records > 1 else ''}{whole} came back verbatim and certified: p > 1/2 for every "
            f"token, by {_number(recall.min_margin)} nats or more, and greedy decoding in {recall.dtype} agreed."
        )
    exact = sum(bool(item.exact) for item in recall.items)
    if exact == 0:
        return f"No. Not one of {whole} came back verbatim under greedy decoding in {recall.dtype}."
    return (
        f"{'Yes' if exact == recall.records else 'Partly'}. {exact:,} of {whole} came back "
        f"verbatim under greedy decoding in {recall.dtype}; {recall.certified:,} of them certified (p > 1/2 for every "
        f"token, by more than {_number(recall.tolerance, 2)} nats)."
    )


def _which_did_not(recall: RecallReport | None) -> str:
    if recall is None:
        return "Not known without a recall."
    stubborn, counts = recall.tokens - recall.ordered, stubborn_counts(recall)
    sentences = [f"None: {_count(recall.tokens, 'token')}, each with p > 1/2."]
    if stubborn:
        whole = f"{sum(map(bool, counts)):,} of {_count(recall.records, 'record')}"
        sentences = [f"{stubborn:,} of {_count(recall.tokens, 'token')} are stubborn (p ≤ 1/2), in {whole}."]
    if 1 in counts:
        sentences.append(f"In {_count(counts.count(1), 'record')} it is a single token.")
    failures = position_counts(item.first_failure for item in recall.items)
    if failures:
        position = max(failures, key=lambda at: failures[at])
        often = f"most often at position {position:,} ({_count(failures[position], 'record')})"
        sentences.append(f"Greedy decoding first goes wrong {often}.")
    return " ".join(sentences)


def _key_numbers(content: ReportContent) -> list[tuple[str, str, str]]:
    """(label, value, note) of the few numbers that stand at the top."""
    numbers = []
    if content.cells:
        finished = sum(cell.status == "finished" for cell in content.cells)
        numbers.append(("cells finished", f"{finished:,}", f"of {len(content.cells):,}"))
    if content.fits:
        leading = content.fits[0]
        numbers.append(("R² of the law", _number(leading.summary.get("r2"), 4), leading.name))
    if content.plan is not None:
        rank = content.plan["rank"]
        numbers.append(("rank planned", _number(rank.get("value")), _interval(rank).strip(" ()")))
    recall = content.recall
    if recall is not None:
        numbers.append(
            ("tokens ordered", _share(recall.ordered / recall.tokens), f"{recall.ordered:,} of {recall.tokens:,}")
        )
        if recall.acc_em is not None and recall.certified is not None:
            numbers.append(
                ("records verbatim", _share(recall.acc_em), f"{recall.certified:,} of {recall.records:,} certified")
            )
        numbers.append(("smallest margin", _number(recall.min_margin), "nats; ordered if above 0"))
    return numbers


# --- sections --------------------------------------------------------------------------------------------------------


def _families(content: ReportContent) -> list[dict[str, Any]]:
    """Cells that differ in rank, length and seed only, each family with its heatmaps and its table."""
    families: dict[tuple[str, ...], list[CellResult]] = {}
    for result in content.cells:
        cell = result.cell
        families.setdefault((cell.model, cell.data, cell.placement, cell.train.method, cell.dtype), []).append(result)
    return [_family_view(number, members, content.sources) for number, members in enumerate(families.values())]


def _family_view(number: int, members: list[CellResult], sources: Mapping[str, str]) -> dict[str, Any]:
    cell = members[0].cell
    name = f"{sources.get(cell.data, f'data {cell.data[:8]}')}, {cell.train.method}, {cell.placement}, {cell.dtype}"
    members = sorted(members, key=lambda member: (member.cell.length, member.cell.rank, member.cell.train.seed))
    heatmaps = []
    loss, accuracy = figures.loss_grid(members), figures.accuracy_grid(members)
    if _has_values(loss):
        caption = f"Mean final loss, nats per target token. Beyond the heavy line it is {SATURATED} or less: saturated."
        heatmaps.append(_grid_figure(loss, f"loss{number}", caption))
    if _has_values(accuracy):
        caption = "Target tokens that greedy decoding gets right, in percent (rounded down)."
        heatmaps.append(_grid_figure(accuracy, f"accuracy{number}", caption))
    return {
        "name": name,
        "heatmaps": heatmaps,
        "cells": members,
        "several_seeds": len({member.cell.train.seed for member in members}) > 1,
        "open": len(members) <= OPEN_ROWS,
        "messages": [member for member in members if member.message],
    }


def _has_values(grid: figures.Grid) -> bool:
    return bool((grid.values >= 0).any())


def _grid_figure(grid: figures.Grid, name: str, caption: str) -> dict[str, Any]:
    return _figure(figures.sketch(figures.draw_grid, grid, size=figures.grid_size(grid)), name, caption)


def _law_view(fits: Sequence[FittedLaw]) -> dict[str, Any] | None:
    if not fits:
        return None
    names = dict.fromkeys(name for fit in fits for name in fit.summary.get("parameters", {}))
    return {
        "fits": fits,
        "axis": fits[0].axis,
        "parameters": list(names),
        "figures": _law_figures(fits),
    }


def _law_figures(fits: Sequence[FittedLaw]) -> list[dict[str, Any]]:
    leading = fits[0]
    shown = []
    points = [point for point in leading.points if point.delta_loss > 0]
    if points:
        lines = f" Lines: {leading.name}." if leading.law is not None else ""
        hollow = f" Hollow: saturated cells (mean final loss {SATURATED} or less, about ln 2)."
        missing = len(leading.points) - len(points)
        absent = f" Not on these log axes: {_count(missing, 'cell')} without gain." if missing else ""
        for along, curve in ((leading.axis, figures.rank_curve), ("length", figures.length_curve)):
            figure = figures.sketch(figures.draw_law, curve(points, leading.law, axis=leading.axis))
            caption = f"ΔL, the loss that training removes, against {along}.{lines}{hollow}{absent}"
            shown.append(_figure(figure, f"law-{along}", caption))
    laws = [(fit.form, figures.agreement_curve(fit.points, fit.law, axis=fit.axis)) for fit in fits if fit.law]
    if points and laws:
        figure = figures.sketch(figures.draw_agreement, laws)
        caption = (
            "Predicted against measured ΔL; a law without error puts every cell on the dashed line. Hollow: saturated."
        )
        shown.append(_figure(figure, "agreement", caption))
    return shown


def _plan_view(plan: Mapping[str, Any]) -> dict[str, Any]:
    config = plan.get("lora_config")
    lines = [] if config is None else [f"    {key}={value!r},\n" for key, value in config.items()]
    notes = [plan.get("reason"), plan.get("extrapolates"), *plan.get("caveats", ())]
    return {
        "rows": [(label, text) for label, text in _plan_rows(plan) if text],
        "notes": [note for note in notes if note],
        "config": f"LoraConfig(\n{''.join(lines)})" if lines else None,
    }


def _plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text), the text empty where the plan does not say."""
    rank, saturation = plan["rank"], plan.get("saturation") or {}
    needed, law, cost = plan.get("loss_needed") or {}, plan.get("law") or {}, plan.get("cost") or {}
    most = f"; this placement allows {_number(plan['largest_rank'])}" if plan.get("largest_rank") else ""
    loss = f"{_number(needed.get('nats'))} nats a token, from {_number(plan.get('loss_init'))}. {needed.get('why', '')}"
    over = [f"{name} {law[name][0]:g} to {law[name][1]:g}" for name in ("ranks", "lengths") if name in law]
    fitted = [str(law.get("source", "")), *([f"{law['form']} form"] if "form" in law else []), *over]
    size = f"{_number(cost.get('adapter_parameters'))} parameters, {_number(cost.get('adapter_bytes', 0) / 1000)} kB"
    return [
        ("memory set", f"{_plan_size(plan)}, about {_number(plan['bits'])} bits"),
        ("share to recall", _share(plan["target"]) if "target" in plan else ""),
        ("placement", str(plan.get("placement") or "")),
        ("rank", f"{_number(rank.get('value'))}{_interval(rank)}{most}"),
        ("mean loss to reach", loss if needed else ""),
        (
            "mean loss under ln 2",
            f"from rank {_number(saturation.get('value'))}{_interval(saturation)}" if saturation else "",
        ),
        ("by the law of", ", ".join(fitted)),
        ("adapter", size if cost else ""),
        ("training", f"{_number(cost['training_flops'])} operations" if cost.get("training_flops") else ""),
    ]


def _recall_view(recall: RecallReport, texts: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    shown = worst(recall, WORST_RECORDS)
    return {
        "report": recall,
        "ln2": LN2,
        "weakest": shown[0],
        "figures": _recall_figures(recall, shown[0]),
        "rows": [_record_view(item, texts) for item in shown],
    }


def _recall_figures(recall: RecallReport, weakest: RecordRecall) -> list[dict[str, Any]]:
    strip = figures.strip_curve(weakest)
    size = figures.positions_size(len(strip.p))
    mark = (
        "" if weakest.first_failure is None else " The triangle marks the first token that greedy decoding got wrong."
    )
    caption = f"Probability of each target token of the weakest record. Dashed: p = 1/2.{mark}"
    shown = [_figure(figures.sketch(figures.draw_strip, strip, size=size), "strip", caption)]
    troubled = any(item.earliest_stubborn is not None or item.exact is False for item in recall.items)
    if troubled and recall.records > 1:
        failures = figures.failure_curve(recall)
        size = figures.positions_size(len(failures.first_failure))
        caption = "Where records break: how many have their first trouble at each target position."
        shown.insert(0, _figure(figures.sketch(figures.draw_failures, failures, size=size), "failures", caption))
    return shown


def _record_view(item: RecordRecall, texts: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    strip = figures.strip_curve(item)
    return {
        "item": item,
        "verdict": _verdict(item),
        "bars": [_bar_view(strip, index) for index in range(len(strip.p))],
        "text": None if texts is None else _text_view(item, texts.get(item.id, ())),
    }


def _bar_view(strip: Strip, index: int) -> dict[str, Any]:
    start, last = int(strip.start[index]), int(strip.stop[index]) - 1
    where = f"position {start:,}" if start == last else f"positions {start:,} to {last:,}, weakest"
    kind = "ordered" if strip.ordered[index] else "stubborn"
    wrong = bool(strip.wrong[index])
    p = float(strip.p[index])
    return {
        "p": p,
        "kind": kind,
        "wrong": wrong,
        "title": f"{where}: p {p:.3f}, {kind}{', decoded wrong' if wrong else ''}",
    }


def _text_view(item: RecordRecall, pieces: Sequence[str]) -> list[tuple[str, str]]:
    """(text, kind) of every target token."""
    if len(pieces) != item.length:
        raise DataError(
            f"Record {item.id!r} has {item.length} target tokens but {len(pieces)} pieces of text, so colours would "
            f"fall on the wrong ones. Pass the memory set and tokenizer that were recalled."
        )
    return [
        (text, "ordered" if is_ordered(nll) else "stubborn") for text, nll in zip(pieces, item.tokens.nll, strict=True)
    ]


def _verdict(item: RecordRecall) -> str:
    if item.certified:
        return "certified"
    if item.exact:
        return "verbatim, not certified"
    if item.exact is None:
        return "ordered, not decoded" if item.margin > 0 else "stubborn, not decoded"
    return "wrong"


# --- words -----------------------------------------------------------------------------------------------------------


def _figure(figure: Figure, name: str, caption: str) -> dict[str, Any]:
    """An inline SVG that names itself to a screen reader and is never blown up, with its caption."""
    svg = figures.to_svg(figure, name=name)
    widest = f"max-width:{round(_PIXELS_PER_INCH * figure.get_figwidth())}px"
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" style="{widest}" ', 1)
    # Matplotlib escaped what it wrote, and the caption is escaped above.
    return {"svg": Markup(labelled), "caption": caption, "wide": figure.get_figwidth() > figures.HALF[0]}


def _number(value: float | None, digits: int = 3) -> str:
    """A number for a reader: thousands apart, `digits` significant digits, a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return DASH
    if isinstance(value, int) or 10**digits <= abs(value) < 1e9:
        return f"{value:,.0f}".replace("-", MINUS)
    return f"{value:#.{digits}g}".rstrip(".").replace("e-0", "e-").replace("e+", "e").replace("-", MINUS)


def _nats(value: float | None) -> str:
    """A loss in a column of losses."""
    return DASH if value is None else f"{value:.3f}".replace("-", MINUS)


def _share(value: float | None) -> str:
    """A share as percent, never rounded to all or to nothing."""
    if value is None:
        return DASH
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{min(max(100 * value, 0.1), 99.9):.1f} %"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
