"""Every step once on the bundled model, in a few minutes: probe, fit, plan, train, recall, report.

Only the sizes are special to the demo: each step is the function behind the command of the same name.
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
from memlaw.api import with_side_effects, yardstick_for
from memlaw.cli.fit import comparison_lines, fit_lines
from memlaw.cli.output import counted
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
from memlaw.training.run import Run

RANDOM = ProbeConfig(ranks=(1, 2, 4, 8, 16), lengths=(16, 32, 64, 128, 256), steps=200)
"""Random tokens cannot be compressed: what a rank stores of them is pure capacity."""

PHONEBOOK = ProbeConfig(ranks=(4, 8, 16, 32), lengths=(330, 1100), steps=400, batch_size=10)
"""The published PB1000 (100 names, each with ten digits and an end of sequence), and its first 30 records. The lengths
lie on both sides of the set to plan for, so that the calibrated law interpolates, and some cells show at which loss
everything is recalled."""

RECORDS = 60
"""Phone book records to plan for, train and recall."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoFiles:
    """Where the demo writes; `memlaw report` finds these names."""

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

    def save(self, name: str, document: Any) -> None:
        write_text(self.root / name, canonical_json(document))


@dataclass(frozen=True)
class DemoResults:
    """What the steps of the demo return, in their order."""

    probes: Sequence[ProbeSummary]
    comparison: Comparison
    plan: Plan
    trained: Trained
    recall: RecallReport

    @property
    def finished(self) -> int:
        return sum(summary.finished for summary in self.probes)


def run_demo(out: Path, *, say: Say) -> tuple[dict[str, Any], list[str]]:
    """Run the demo into `out`, reporting progress through `say`; returns the JSON document and the lines to print.

    A second run reuses every finished cell of the first. Raises what its steps raise.
    """
    files = DemoFiles(out)
    started = time.monotonic()
    results = _run_steps(files, say)
    lines = list(_lines(files, results, time.monotonic() - started))
    return _document(files, results), lines


def _run_steps(files: DemoFiles, say: Say) -> DemoResults:
    base = load()
    placement = placement_on(None, base.model)
    book = published_phonebook()
    say(f"memlaw demo on {base.name} ({base.layers} layers), adapters at {placement}; output in {files.root}.")
    with _timed(say, "1/6 probe: random tokens and the published phone book"):
        noise = random_tokens(tokens=max(RANDOM.lengths), seed=0, ids=reachable_ids(base))
        probes = [_probe(base, noise, RANDOM, files.random), _probe(base, book, PHONEBOOK, files.phonebook)]
    with _timed(say, "2/6 fit: the law, in every form"):
        cells = probe_results(files.random)
        comparison = compare(points_from_results(cells), source="random tokens")
        write_text(files.root / LAW, with_cells(comparison.best_to_plan, cells, files.random).to_json())
    some = replace(book, facts=book.facts[:RECORDS])
    facts = encode(some, base.tokenizer, context=base.context, stops=base.stops)
    with _timed(say, f"3/6 plan: which rank do {RECORDS} phone numbers need?"):
        plan = plan_for(base, facts, placement, law_chooser(files.root / LAW, files.phonebook))
        files.save(PLAN, plan.to_dict())
    rank = plan.rank.value or plan.largest_rank
    with _timed(say, f"4/6 train: rank {rank} until recalled"):
        trained = train_adapter(base, some, Run(rank, placement, UNTIL_RECALLED), out=files.adapter)
        trained = with_side_effects(base, some, trained, yardstick_for(base, some), files.adapter)
    with _timed(say, "5/6 recall: every token, and greedy decoding"), attach(base, files.adapter):
        recall = measure(base, facts, decode=True, explain=True)
        files.save(RECALL, report_to_dict(recall, side_effects=trained.side_effects))
    with _timed(say, "6/6 report"):
        files.save(COMMANDS, {"commands": ["memlaw demo"]})
        write(collect(files.root), files.report)
    return DemoResults(probes, comparison, plan, trained, recall)


def published_phonebook() -> MemorySet:
    """The published PB1000 file for Qwen3's tokenizer, which splits numbers into digits as the bundled one does."""
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


def _document(files: DemoFiles, results: DemoResults) -> dict[str, Any]:
    trained = results.trained
    return {
        "report": str(files.report),
        "cells": sum(summary.cells for summary in results.probes),
        "finished": results.finished,
        "failed": sum(summary.failed for summary in results.probes),
        "fits": {law.form: law.summary() for law in results.comparison.fits},
        "better": results.comparison.best.form,
        "plan": results.plan.to_dict(),
        "train": {"rank": trained.rank, "steps": trained.steps, "recalled": trained.recalled},
        "recall": report_to_dict(results.recall, per_token=False, side_effects=trained.side_effects),
    }


def _lines(files: DemoFiles, results: DemoResults, seconds: float) -> Iterator[str]:
    trained = results.trained
    yield f"{results.finished} adapters trained and measured for the law; the whole demo took {seconds:.0f} s."
    yield ""
    yield "The law, on random tokens:"
    yield from fit_lines(results.comparison.best)
    yield ""
    yield from comparison_lines(results.comparison)
    yield ""
    yield f"Will it fit? {RECORDS} phone numbers, with the law calibrated on the phone book's own cells:"
    yield from plan_lines(results.plan)
    yield ""
    ended = "every target token ordered" if trained.recalled else "some facts not recalled"
    yield f"Make it stick: rank {trained.rank}, {counted(trained.steps, 'step')}, {ended}."
    yield ""
    yield "Did it stick?"
    yield from recall_lines(results.recall, effects=results.trained.side_effects)
    yield ""
    yield f"Report: {files.report}"
