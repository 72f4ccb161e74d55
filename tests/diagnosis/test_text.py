"""Verbatim is judged on the text that comes back: the judge is what transformers' `generate` and the tokenizer give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

import memlaw
from helpers import tiny
from helpers.texts import LOSSY, answer, base_with, character_tokenizer
from memlaw.adapter.peft import attach
from memlaw.core.facts import Fact, MemorySet
from memlaw.data import encode
from memlaw.diagnosis.measure import measure

CHANGED = r"1 of 1 facts \('1'\) cannot come back verbatim: the tokenizer changes their targets"

CASES = {**LOSSY, "faithful": (character_tokenizer, " PS-22K")}


@pytest.mark.parametrize("name", CASES)
def test_a_certificate_means_that_the_characters_come_back(name: str, tmp_path: Path) -> None:
    build, target = CASES[name]
    base = base_with(build())
    facts = MemorySet((Fact("Code A:", target, "1"),), True, "test")
    arguments: dict[str, Any] = {"rank": 8, "steps": 400, "out": tmp_path / "A"}
    lossy = name != "faithful"
    if lossy:
        with pytest.warns(UserWarning, match=CHANGED):
            trained = memlaw.train(base.model, base.tokenizer, facts, **arguments)
    else:
        trained = memlaw.train(base.model, base.tokenizer, facts, **arguments)
    assert (trained.recalled, trained.other_text) == (not lossy, ("1",) if lossy else ())

    (fact,) = encode(facts, base.tokenizer, context=None)
    with attach(base, tmp_path / "A"):
        came_back = answer(base, fact)
    assert (came_back == target) is not lossy
    report = memlaw.recall(base.model, base.tokenizer, facts, adapter=tmp_path / "A")
    (item,) = report.items
    assert item.tokens.decoded == (True,) * fact.length  # the tokens are those that were asked for
    assert item.exact is item.certified is item.tokens.faithful is (came_back == target)
    assert (report.acc_em, report.certified) == ((0.0, 0) if lossy else (1.0, 1))
    assert item.reason == ("other_text" if lossy else None)
    unread = memlaw.recall(base.model, base.tokenizer, facts, adapter=tmp_path / "A", decode=False).items[0]
    assert (unread.exact, unread.reason) == (None, item.reason)


@pytest.mark.parametrize("name", CASES)
def test_check_has_an_error_for_each_target_that_does_not_survive(name: str) -> None:
    build, target = CASES[name]
    base = base_with(build())
    facts = MemorySet((Fact("q:", "fine", "0"), Fact("Code A:", target, "1")), True, "test")
    (fine, fact) = encode(facts, base.tokenizer, context=None)
    read = {f.id: base.tokenizer.decode(f.ids, skip_special_tokens=True) for f in (fine, fact)}
    asked = {f.id: base.tokenizer.decode(f.prompt, skip_special_tokens=True) for f in (fine, fact)}
    expected = {f.id for f in facts.facts if read[f.id] != asked[f.id] + f.target}
    report = memlaw.check(base.model, base.tokenizer, facts)
    found = {f.record: f for f in report.findings if f.code == "other-text"}
    assert found.keys() == expected
    assert {f.severity for f in found.values()} <= {"error"}
    assert all(target.strip() not in f.message for f in found.values())


def test_one_fault_of_the_text_is_told_once() -> None:
    base = tiny.base()
    facts = MemorySet((Fact("q:", "5 \u20ac", "1"),), True, "test")  # the sign is an unknown token
    codes = [f.code for f in memlaw.check(base.model, base.tokenizer, facts).findings if f.severity == "error"]
    assert codes == ["unknown-token"]


def test_a_failure_with_another_text_is_not_one_token_short() -> None:
    base = base_with(character_tokenizer(normalizer=normalizers.Lowercase()))
    facts = encode(MemorySet((Fact("Code A:", "Q", "1"),), False, "test"), base.tokenizer, context=None)
    (item,) = measure(base, facts, decode=True, explain=True).items
    assert (item.exact, item.one_token_short, item.reason) == (False, False, "other_text")
