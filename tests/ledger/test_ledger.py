"""memlaw.ledger.open and the verbs of the object that it returns."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

import memlaw
from helpers import tiny
from helpers.ledgers import SETTINGS, a_ledger, snapshot, some_facts, update
from helpers.real_ledgers import FIRST, SECOND
from memlaw.core.errors import ConfigError, DataError, LedgerError
from memlaw.core.facts import MemorySet
from memlaw.ledger import Change, status, upkeep, view
from memlaw.ledger.review import review


def test_the_verbs_are_those_of_the_rooms_modules(tmp_path):
    store = a_ledger(tmp_path / "KB")
    first = update(store, some_facts("a"))
    second = update(store, some_facts("b"))
    ledger = memlaw.ledger.open(str(tmp_path / "KB"))
    assert ledger.settings == SETTINGS
    assert (ledger.version(), ledger.version(1)) == (second, first)
    assert ledger.status() == status.status(store)
    assert ledger.log() == view.log(store)
    assert ledger.history("a") == view.history(store, "a")
    assert ledger.verify() == upkeep.verify(store)
    assert ledger.review() == review(store)
    assert ledger.rollback(1) == first == ledger.version()
    assert ledger.export(tmp_path / "out") == first
    assert (ledger.route("What is a? "), ledger.route("What is b? ")) == (1, None)
    assert snapshot(tmp_path / "out") == snapshot(store.folder(1) / "adapters" / "1")


def test_where_there_is_no_ledger_none_is_opened(tmp_path):
    with pytest.raises(LedgerError, match="is not a ledger"):
        memlaw.ledger.open(tmp_path)


def test_a_ledger_is_read_without_torch_and_numpy(tmp_path):
    update(a_ledger(tmp_path), some_facts("a"))
    script = """
import sys, json, memlaw
ledger = memlaw.ledger.open(sys.argv[1])
facts = [ledger.status().facts, len(ledger.log().entries), ledger.verify().intact]
print(json.dumps([*facts, sorted({"torch", "transformers", "pyarrow", "numpy"} & sys.modules.keys())]))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, 2, True, []]


def set_of(facts: tuple[memlaw.Fact, ...]) -> MemorySet:
    return MemorySet(facts, True, "test")


def test_a_ledger_is_made_updated_and_audited_on_a_model_in_memory(tmp_path):
    base = tiny.base()
    model, tokenizer = base.model, base.tokenizer
    ledger = memlaw.ledger.create(tmp_path / "KB", model, tokenizer, rank=16, placement="down_proj@2", seed=7)
    assert (ledger.settings.rank, ledger.settings.placement, ledger.settings.train.seed) == (16, "down_proj@2", 7)
    steps = []
    version = ledger.update(model, tokenizer, set_of(FIRST), max_harm=math.inf, on_step=steps.append)
    assert (version.number, version.change.added) == (1, ("a", "b", "c"))
    assert len(steps) >= version.effort.steps
    assert ledger.update(model, tokenizer, set_of(FIRST)) == version
    served = tmp_path / "served"
    ledger.export(served)
    audit = ledger.audit(model, tokenizer, adapter=served, side_effects=True)
    assert {fact.verdict for fact in audit.held} == {"certified"}
    assert audit.side_effects is not None
    assert ledger.audit(model, tokenizer).side_effects is None
    assert ledger.review(audits=[audit]).forgetting.accuracy == 1.0
    other = tiny.base(seed=1)
    with pytest.raises(LedgerError, match="made for another base model"):
        ledger.audit(other.model, other.tokenizer)


def test_a_difference_names_ids_and_refuses_what_an_update_would(tmp_path):
    store = a_ledger(tmp_path / "KB")
    update(store, FIRST)
    ledger = memlaw.ledger.open(store.root)
    assert ledger.difference(set_of(SECOND), retract=["b"]) == Change(added=("d",), changed=("a",), retracted=("b",))
    file = tmp_path / "facts.jsonl"
    file.write_text('{"id": "e", "prompt": "key e:", "completion": "new"}\n')
    assert ledger.difference(file) == Change(added=("e",))
    assert ledger.difference() == Change()
    with pytest.raises(DataError, match="which is to be retracted"):
        ledger.difference(set_of(SECOND), retract=["a"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_harm": -0.1}, "choose nats a token, from 0 up"),
        ({"max_harm": math.nan}, "choose nats a token, from 0 up"),
        ({"allow_loss": -1}, "a whole number from 0 up"),
        ({"rank": 3}, "3 is below the ledger's 4"),
    ],
)
def test_terms_that_say_nothing_and_a_lower_rank_are_refused_at_once(tmp_path, options, sentence):
    ledger = memlaw.ledger.open(a_ledger(tmp_path / "KB").root)
    with pytest.raises(ConfigError, match=sentence):
        ledger.update(None, None, set_of(FIRST), **options)


def test_a_ledger_is_made_for_the_tokens_that_it_is_to_hold(tmp_path):
    base = tiny.base()
    ledger = memlaw.ledger.create(tmp_path / "KB", base.model, base.tokenizer, room=10, like=set_of(FIRST))
    assert ledger.settings.rank == ledger.version().rank >= 1
    with pytest.raises(ConfigError, match="and not both"):
        memlaw.ledger.create(tmp_path / "other", base.model, base.tokenizer, rank=2, room=10)
