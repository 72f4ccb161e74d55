"""memlaw.ledger.open and the verbs of the object that it returns."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import memlaw
from helpers.ledgers import SETTINGS, a_ledger, snapshot, some_facts, update
from memlaw.core.errors import LedgerError
from memlaw.ledger import status, upkeep, view


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
    assert ledger.rollback(1) == first == ledger.version()
    assert ledger.export(tmp_path / "out") == 1
    assert snapshot(tmp_path / "out") == snapshot(store.folder(1) / "adapter")


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
