"""`memlaw journal status`: how far a probe has come, from its directory alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from helpers.journals import a_failure, a_result, cell_file
from memlaw.core.canonical import to_dict
from memlaw.core.errors import JournalError
from memlaw.sweep.journal import CheckpointStatus, Journal, PackCounts, ProbeSpec, Reason, status

KEYS = [a_result(rank).cell.key for rank in range(1, 8)]

PACKS = (tuple(KEYS[:2]), tuple(KEYS[2:4]), tuple(KEYS[4:]))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "P")
    journal.claim(ProbeSpec(identity={"ranks": [1]}, packs=PACKS, about={"model": "tiny"}))
    return journal


def test_a_probe_without_results_is_all_waiting(journal):
    state = status(journal.root)
    assert (state.cells, state.finished, state.diverged, state.failed, state.waiting) == (7, 0, 0, 0, 7)
    assert state.packs == PackCounts(done=0, partly=0, waiting=3)
    assert state.about == {"model": "tiny"}
    assert state.reasons == state.checkpoints == ()


def test_cells_are_counted_by_status_and_packs_by_missing_cells(journal):
    journal.publish(a_result(1))
    journal.publish(a_result(2, loss_final=None, status="diverged", acc_token=None))
    journal.publish(a_result(3))
    for rank, message in ((4, "a hang"), (5, "out of memory"), (6, "out of memory"), (3, "before it succeeded")):
        journal.publish(a_failure(rank, message))
    journal.publish(a_result(99))  # of no pack: somebody copied it here
    state = status(journal.root)
    assert (state.cells, state.finished, state.diverged, state.failed, state.waiting) == (7, 2, 1, 3, 1)
    assert state.reasons == (Reason("out of memory", 2), Reason("a hang", 1))
    assert state.packs == PackCounts(done=1, partly=1, waiting=1)
    assert json.loads(json.dumps(to_dict(state)))["packs"] == {"done": 1, "partly": 1, "waiting": 1}


def test_a_damaged_cell_counts_as_waiting_and_stays_in_place(journal):
    journal.publish(a_result(1))
    cell_file(journal.root, a_result(1)).write_text("{")
    state = status(journal.root)
    assert (state.finished, state.waiting, state.damaged) == (0, 7, 1)
    assert cell_file(journal.root, a_result(1)).exists()


def test_checkpoints_are_those_of_packs_newest_first_and_unreadable_ones_passed_over(journal):
    for number, text in (("3", '{"step": 30}'), ("10", '{"step": 100}'), ("11", "{")):
        folder = journal.checkpoint(PACKS[1]) / number
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(text)
    (journal.root / "checkpoints" / "of another run" / "1").mkdir(parents=True)
    assert status(journal.root).checkpoints == (CheckpointStatus(pack=2, step=100),)


def test_the_last_activity_is_when_a_file_last_appeared(journal):
    journal.publish(a_result(1))
    for folder in (journal.root, journal.root / "cells"):
        os.utime(folder, (1e9, 1e9))
    assert status(journal.root).last_activity == datetime.fromtimestamp(1e9, UTC).isoformat()
    journal.publish(a_failure(2))
    assert status(journal.root).last_activity > "2020"


def test_another_directory_has_no_status(tmp_path):
    with pytest.raises(JournalError, match=r"is not a probe directory: it has no probe\.json"):
        status(tmp_path)


def test_status_changes_nothing_and_loads_no_torch(journal):
    journal.publish(a_result(1))
    cell_file(journal.root, a_result(1)).write_text("{")
    before = sorted((str(path), path.stat().st_mtime_ns) for path in journal.root.rglob("*"))
    script = (
        "import sys; from memlaw.sweep.journal import status; status(sys.argv[1]); "
        "print({'torch', 'transformers', 'pyarrow', 'numpy'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", script, str(journal.root)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
    assert sorted((str(path), path.stat().st_mtime_ns) for path in journal.root.rglob("*")) == before
