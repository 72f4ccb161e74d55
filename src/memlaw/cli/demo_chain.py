"""The whole chain once, on the bundled base, in a few minutes: probe, fit, plan, train, recall, report.

Nothing here is special to the demo but its sizes: each step is the function behind the command of the same name.
"""

from __future__ import annotations

import importlib.resources
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach
from memlaw.cli.fit import comparison_lines, fit_lines
from memlaw.cli.plan import plan_lines
from memlaw.cli.recall import recall_lines
from memlaw.core.canonical import canonical_json
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.facts import MemorySet
from memlaw.core.files import write_text
from memlaw.core.recall import RecallReport
from memlaw.data import encode, read
from memlaw.data.tasks import random_tokens
from memlaw.diagnosis.documents import report_to_dict
from memlaw.diagnosis.measure import measure
from memlaw.law import Comparison, compare, points_from_results
from memlaw.model.base import Base, load
from memlaw.model.reach import reachable_ids
from memlaw.planning import Plan
from memlaw.planning.for_facts import plan_for
from memlaw.report import write
from memlaw.report.collect import COMMANDS, LAW, PLAN, RECALL, collect
from memlaw.sweep.config import ProbeConfig
from memlaw.sweep.laws import law_chooser, probe_results, with_cells
from memlaw.sweep.probe import ProbeSummary, probe
from memlaw.sweep.scheduler import ProbeRun
from memlaw.training.adapter import train_adapter
from memlaw.training.result import Trained

RANDOM = ProbeConfig(ranks=(1, 2, 4, 8, 16), lengths=(16, 32, 64, 128, 256), steps=600)
"""Random tokens have nothing to compress: how much a rank holds of them is capacity and nothing else."""

PHONEBOOK = ProbeConfig(ranks=(4, 8, 16, 32), lengths=(330, 1100), steps=900, batch_size=10)
"""The published PB1000, 100 names with ten digits and an end of sequence each, and its first 30: on either side of
what is planned for, so that the calibrated law interpolates and some cells say at which loss everything is recalled."""

RECORDS = 60
"""Of the phone book, to be planned for, trained and recalled."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Folder:
    """What goes where under the demo's directory; `memlaw report` finds it there."""

    root: Path

    @property
    def random(self) -> Path:
        return self.root / "random"

    @property
    def phonebook(self) -> Path:
        return self.root / "phonebook"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def keep(self, name: str, document: Any) -> None:
        write_text(self.root / name, canonical_json(document))


def run_demo(out: Path, *, say: Say) -> tuple[dict[str, Any], list[str]]:
    """Run the demo into `out`, telling `say` where it stands; (numbers, sentences) come back.

    A second run keeps every cell the first one finished. Raises what its steps raise.
    """
    folder = _Folder(out)
    started = time.monotonic()
    base = load()
    placement = placement_on(None, base.model)
    book = published_phonebook()
    say(f"memlaw demo on {base.name} ({base.layers} layers), adapters at {placement}; everything goes to {out}.")
    with _timed(say, "1/6 probe: random tokens and the published phone book"):
        longest = max(RANDOM.lengths)
        noise = random_tokens(tokens=longest, seed=0, ids=reachable_ids(base))
        cells = [_probe(base, noise, RANDOM, folder.random), _probe(base, book, PHONEBOOK, folder.phonebook)]
    with _timed(say, "2/6 fit: the law, in every form"):
        results = probe_results(folder.random)
        judged = compare(points_from_results(results), source="random tokens")
        write_text(out / LAW, with_cells(judged.best_to_plan, results, folder.random).to_json())
    some = replace(book, facts=book.facts[:RECORDS])
    facts = encode(some, base.tokenizer, context=base.context)
    with _timed(say, f"3/6 plan: which rank do {RECORDS} phone numbers need?"):
        plan = plan_for(base, facts, placement, law_chooser(out / LAW, folder.phonebook))
        folder.keep(PLAN, plan.to_dict())
    rank = plan.rank.value or plan.largest_rank
    with _timed(say, f"4/6 train: rank {rank} until recalled"):
        trained = train_adapter(base, some, facts, rank, placement, UNTIL_RECALLED, out=folder.adapter)
    with _timed(say, "5/6 recall: every token, and greedy decoding"), attach(base, folder.adapter):
        report = measure(base, facts, decode=True, explain=True)
        folder.keep(RECALL, report_to_dict(report))
    with _timed(say, "6/6 report"):
        folder.keep(COMMANDS, {"commands": ["memlaw demo"]})
        write(collect(out), folder.report)
    return (
        _document(folder, cells, judged, plan, trained, report),
        list(_lines(folder, cells, judged, plan, trained, report, time.monotonic() - started)),
    )


def published_phonebook() -> MemorySet:
    """The published PB1000 file for Qwen3's tokenizer, which like the bundled one splits numbers digit by digit."""
    with importlib.resources.as_file(importlib.resources.files("memlaw.law.published") / "PB1000.jsonl") as path:
        return replace(read(path), source="published PhoneBook PB1000")


def _probe(base: Base, memory_set: MemorySet, config: ProbeConfig, out: Path) -> ProbeSummary:
    from memlaw.cli.progress import probe_bar

    with probe_bar() as on_progress:
        return probe(base, memory_set, config, out, ProbeRun(on_progress=on_progress))


@contextmanager
def _timed(say: Say, what: str) -> Iterator[None]:
    say(what)
    started = time.monotonic()
    yield
    say(f"    {time.monotonic() - started:.0f} s")


def _document(
    folder: _Folder,
    cells: Sequence[ProbeSummary],
    judged: Comparison,
    plan: Plan,
    trained: Trained,
    report: RecallReport,
) -> dict[str, Any]:
    return {
        "report": str(folder.report),
        "cells": sum(summary.cells for summary in cells),
        "finished": sum(summary.finished for summary in cells),
        "failed": sum(summary.failed for summary in cells),
        "fits": {law.form: law.summary() for law in judged.fits},
        "better": judged.best.form,
        "plan": plan.to_dict(),
        "train": {"rank": trained.rank, "steps": trained.steps, "recalled": trained.recalled},
        "recall": report_to_dict(report, per_token=False),
    }


def _lines(
    folder: _Folder,
    cells: Sequence[ProbeSummary],
    judged: Comparison,
    plan: Plan,
    trained: Trained,
    report: RecallReport,
    seconds: float,
) -> Iterator[str]:
    finished = sum(summary.finished for summary in cells)
    yield f"{finished} adapters trained and measured for the law, in {seconds:.0f} s for everything."
    yield ""
    yield "The law, on random tokens:"
    yield from fit_lines(judged.best)
    yield ""
    yield from comparison_lines(judged)
    yield ""
    yield f"Will it fit? {RECORDS} phone numbers, with the law calibrated on the phone book's own cells:"
    yield from plan_lines(plan)
    yield ""
    ended = "every target token ordered" if trained.recalled else "not everything recalled"
    yield f"Make it stick: rank {trained.rank}, {trained.steps} steps, {ended}."
    yield ""
    yield "Did it stick?"
    yield from recall_lines(report)
    yield ""
    yield f"The report: {folder.report}"
