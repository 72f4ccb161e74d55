"""Adapters that the code before "The house" saved, and the recall that it measured under them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import memlaw
from helpers.paths import FIXTURES
from memlaw.adapter.info import load_info, recorded_training
from memlaw.adapter.peft import attach
from memlaw.core.config import ADAMW
from memlaw.data import encode, read
from memlaw.diagnosis.measure import measure

BEFORE = FIXTURES / "before_the_move"


@pytest.mark.parametrize(("name", "placement"), [("adapter", "down_proj@4"), ("parallel_adapter", "mlp@4")])
def test_an_adapter_saved_before_the_move_gives_the_recall_measured_then(name: str, placement: str) -> None:
    base = memlaw.load()
    facts = read(BEFORE / "adapter_facts.jsonl")
    expected = json.loads((BEFORE / f"{name}_recall.json").read_text())

    info = load_info(BEFORE / name)
    assert info is not None
    assert (info.base, info.base_fingerprint) == (base.name, base.fingerprint)
    assert (info.placement, info.rank, info.scale) == (placement, 2, 4.0)
    assert (info.facts_fingerprint, info.records, info.tokens) == (facts.fingerprint, 3, 21)
    assert info.loss_final == pytest.approx(expected["mean_loss"], abs=1e-4)
    assert recorded_training(info) == (replace(ADAMW, learning_rate=2e-2, protect=0.0), [])

    with attach(base, BEFORE / name):
        report = measure(base, encode(facts, base.tokenizer, context=base.context), decode=True)
    assert (report.acc_em, report.ordered) == (expected["acc_em"], expected["ordered"])
    for item, then in zip(report.items, expected["items"], strict=True):
        assert (item.id, item.exact, item.earliest_stubborn) == (then["id"], then["exact"], then["earliest_stubborn"])
        assert item.tokens.nll == pytest.approx(then["tokens"]["nll"], abs=1e-4)
