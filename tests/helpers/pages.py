from __future__ import annotations

import dataclasses
import functools
from html.parser import HTMLParser

from helpers.sample import EFFECTS, cell, diverged, many, points, recall
from memlaw.core.recall import LN2
from memlaw.law import fit_law
from memlaw.report import FittedLaw, ReportContent
from memlaw.report.content import AdapterCost

HOSTILE = '</script></style><img src=x onerror="window.broken=1">&\'"\N{RIGHT-TO-LEFT OVERRIDE}{{ 7 * 7 }}'

PLAN = {
    "records": 60,
    "tokens": 660,
    "bits": 1993.2,
    "loss_init": 2.09,
    "target": 1.0,
    "loss_needed": {"nats": 0.05, "most": 0.05, "why": "No cell says better."},
    "rank": {"value": 16, "low": 12, "high": 21},
    "saturation": {"value": 11, "low": 8, "high": None},
    "largest_rank": 128,
    "reason": None,
    "extrapolates": "660 tokens are 3 times the longest cell fitted.",
    "caveats": ["One seed only."],
    "law": {"source": "this probe", "form": "bounded", "ranks": [1.0, 8.0], "lengths": [16.0, 256.0]},
    "lora_config": {"r": 16, "target_modules": ["down_proj"]},
    "cost": {"adapter_parameters": 4096, "adapter_bytes": 16384, "training_flops": 3.1e12},
}

COSTS = tuple(
    AdapterCost(
        name=name, place=f"rank {rank} at down_proj@4", recalled=recalled, records=12,
        effects=dataclasses.replace(EFFECTS, loss_difference=harm),
    )
    for name, rank, recalled, harm in (("plain", 8, 12, 2.6), ("kind", 8, 11, 0.02), ("worse", 2, 3, -0.01 + 0.5))
)  # fmt: skip
"""Of the second, no other recalls as much for less; the third is worse than the second in both."""

VOID = {"meta", "link", "br", "hr", "img", "input", "col", "base"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; an end tag that closes nothing, or the wrong one, is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], "tags left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@functools.cache
def laws():
    measured = points(ranks=(1, 2, 3, 4, 8), lengths=(16, 32, 64, 128, 256))
    fits = (fit_law(measured, form=form) for form in ("bounded", "paper"))
    return [FittedLaw(summary=fit.summary(), points=measured, predictor=fit) for fit in fits]


def content(**changes):
    """A report with every part."""
    cells = [cell(rank, length, 10 / rank, acc_token=rank / 8) for rank in (1, 2, 4) for length in (16, 64)]
    values = {
        "title": "Sixty phone numbers",
        "cells": [*cells, diverged(8, 16), cell(8, 64, 0.01, acc_token=1.0)],
        "fits": laws(),
        "plan": PLAN,
        "recall": many(20, 10),
        "costs": COSTS,
        "sources": {"d" * 64: "random tokens"},
        "made": {"base": "memlaw/base", "versions": "memlaw 0.1.0"},
        "commands": ["memlaw probe", "memlaw report"],
    }
    return ReportContent(**values | changes)


def remembered(rank, length, loss_final, certified_tokens=0, **changes):
    return cell(rank, length, loss_final, loss_memoryless=10 * LN2, certified_tokens=certified_tokens, **changes)


def hostile_content(text=HOSTILE):
    """`text` wherever a string of a user can appear."""
    report = recall({text: [0.1, 2.0], "b": [0.1]})
    fit = laws()[0]
    return content(
        title=text,
        cells=[remembered(1, 16, 3.0), diverged(2, 16, text), remembered(4, 16, 0.1, 16, placement=text)],
        fits=[
            dataclasses.replace(fit, label=text, summary=fit.summary | {"status": text, "source": text}),
            dataclasses.replace(fit, label=text, summary=fit.summary | {"form": text}),
        ],
        plan=PLAN | {"reason": text, "caveats": [text], "lora_config": {text: text}, "law": {"source": text}},
        recall=report,
        costs=[dataclasses.replace(cost, name=text, place=text) for cost in COSTS],
        texts={text: [text, text], "b": ["b"]},
        sources={"d" * 64: text},
        made={text: text},
        commands=[text],
    )
