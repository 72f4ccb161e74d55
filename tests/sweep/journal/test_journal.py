"""The journal keeps what was acknowledged: through kills, races, full disks and damaged files."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers import cuts
from helpers.journals import (
    SPAWN,
    _publish_mine,
    _publish_under_a_file_size_limit,
    _rebuild_over_and_over,
    a_failure,
    a_result,
    cell_file,
    leftovers,
    sealed,
)
from helpers.paths import TESTS
from memlaw.core.cells import result_to_dict
from memlaw.core.errors import JournalError
from memlaw.sweep.journal import Journal


def test_a_published_result_is_one_file_named_by_its_key_and_sealed_with_its_sha256(tmp_path):
    result = a_result()
    Journal(tmp_path).publish(result)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{result.cell.key}.json"]
    assert cell_file(tmp_path, result).read_text() == sealed(result_to_dict(result))
    assert Journal(tmp_path).results() == (result,)
    assert Journal(tmp_path).holds(result.cell.key)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_cannot_be_published(tmp_path, number):
    with pytest.raises(ValueError, match="JSON compliant"):
        Journal(tmp_path).publish(a_result(loss_init=number))
    assert Journal(tmp_path).results() == ()


def test_the_same_result_twice_counts_once(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    journal.publish(a_result())
    assert journal.results() == (a_result(),)
    assert journal.findings == []
    assert not (tmp_path / "quarantine").exists()


def test_the_first_of_two_results_counts_and_the_second_goes_to_quarantine(tmp_path):
    journal = Journal(tmp_path)
    first, second = a_result(loss_final=0.5), a_result(loss_final=0.6)
    journal.publish(first)
    journal.publish(second)
    assert journal.results() == (first,)
    [finding] = journal.findings
    assert finding.startswith(
        f"Cell {first.cell.key} was trained twice with different results. The first result counts"
    )
    [aside] = (tmp_path / "quarantine").iterdir()
    assert aside.read_text() == sealed(result_to_dict(second))


def test_results_are_sorted_by_key_in_any_order_of_publication(tmp_path):
    journal = Journal(tmp_path)
    for rank in (3, 1, 2):
        journal.publish(a_result(rank))
    keys = [result.cell.key for result in journal.results()]
    assert keys == sorted(keys)
    assert len(keys) == 3


def test_a_failure_is_reported_until_the_cell_succeeds(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_failure(message="out of memory"))
    journal.publish(a_failure(message="a hang"))
    assert [result.message for result in journal.results()] == ["a hang"]
    assert not journal.holds(a_failure().cell.key)
    journal.publish(a_result())
    assert journal.results() == (a_result(),)
    journal.publish(a_failure())
    assert journal.results() == (a_result(),)


def test_a_diverged_cell_is_a_result_that_counts(tmp_path):
    diverged = a_result(loss_final=None, status="diverged", steps=7, acc_token=None, message="no number at step 7")
    Journal(tmp_path).publish(diverged)
    assert Journal(tmp_path).holds(diverged.cell.key)
    assert Journal(tmp_path).results() == (diverged,)


def test_a_damaged_cell_has_no_result_and_an_intact_one_is_read_once(tmp_path, monkeypatch):
    Journal(tmp_path).publish(a_result(1))
    Journal(tmp_path).publish(a_result(2))
    flipped = bytearray(cell_file(tmp_path, a_result(1)).read_bytes())
    flipped[100] ^= 1
    cell_file(tmp_path, a_result(1)).write_bytes(flipped)
    journal = Journal(tmp_path)
    assert not journal.holds(a_result(1).cell.key)
    assert "It is in quarantine" in journal.findings[0]
    assert journal.holds(a_result(2).cell.key)

    def no_reading(path: Path) -> bytes:
        raise AssertionError(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", no_reading)
        assert journal.holds(a_result(2).cell.key)
    cell_file(tmp_path, a_result(2)).unlink()
    assert not journal.holds(a_result(2).cell.key)


def test_files_are_judged_by_content_not_by_time(tmp_path):
    journal = Journal(tmp_path)
    for rank in (1, 2):
        journal.publish(a_result(rank))
    for rank, moment in ((1, 0), (2, 2**33)):
        os.utime(cell_file(tmp_path, a_result(rank)), (moment, moment))
    assert set(Journal(tmp_path).results()) == {a_result(1), a_result(2)}
    journal.publish(a_result(1))
    assert journal.findings == []


def test_an_intact_result_moved_by_mistake_is_put_back(tmp_path, monkeypatch):
    """Another process replaces a damaged file just after this one has read it."""
    Journal(tmp_path).publish(a_result())
    cell_file(tmp_path, a_result()).write_text("{")
    real = os.replace

    def slowly(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", real)
        Journal(tmp_path).publish(a_result())
        real(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    assert Journal(tmp_path).results() == ()
    assert Journal(tmp_path).results() == (a_result(),)
    [aside] = (tmp_path / "quarantine").iterdir()
    assert aside.read_text() == "{"


def test_a_damaged_file_may_be_moved_by_another_process_first(tmp_path, monkeypatch):
    Journal(tmp_path).publish(a_result())
    cell_file(tmp_path, a_result()).write_text("{")
    real = os.replace

    def slowly(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", real)
        Journal(tmp_path).results()
        real(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    journal = Journal(tmp_path)
    journal.publish(a_result())
    assert journal.findings == []
    assert journal.results() == (a_result(),)


def test_a_result_published_over_a_damaged_file_replaces_it(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    cell_file(tmp_path, a_result()).write_text("{")
    journal.publish(a_result())
    assert journal.results() == (a_result(),)
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_a_damaged_file_that_cannot_be_moved_is_ignored_and_blocks_publication(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    cell_file(tmp_path, a_result()).write_text("{")
    (tmp_path / "quarantine").touch()
    assert journal.results() == ()
    assert "It cannot be moved to quarantine: File exists." in journal.findings[0]
    with pytest.raises(JournalError, match=r"is damaged and cannot be moved to quarantine.*Move the file elsewhere"):
        journal.publish(a_result())


def test_a_damaged_failure_is_not_reported_as_a_failure(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_failure())
    (tmp_path / "failures" / f"{a_failure().cell.key}.json").write_text("{")
    assert journal.results() == ()
    assert "failures/" in journal.findings[0]


def test_files_of_killed_writers_are_neither_read_nor_kept(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    (tmp_path / "cells" / f".{a_result().cell.key}.json.abcdef.tmp").write_text("{")
    assert journal.results() == (a_result(),)
    assert journal.findings == []
    journal.write_table()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_result_that_cannot_be_written_is_not_acknowledged_and_leaves_nothing(tmp_path, monkeypatch, call, code):
    journal = Journal(tmp_path)
    journal.publish(a_result(1))

    def fault(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fault)
        with pytest.raises(JournalError) as caught:
            journal.publish(a_result(2))
    assert str(caught.value) == (
        f"Cannot write {a_result(2).cell.key}.json in {tmp_path / 'cells'}: {os.strerror(code)}. This result is "
        "not recorded; earlier results are safe. Free some space or repair the disk, then rerun the command: finished "
        "cells are skipped."
    )
    assert leftovers(tmp_path) == []
    assert journal.results() == (a_result(1),)
    journal.publish(a_result(2))
    assert set(journal.results()) == {a_result(1), a_result(2)}


def test_a_folder_that_cannot_be_synced_prevents_acknowledgement_but_does_no_harm(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.publish(a_result(1))
    real = os.fsync

    def only_files(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", only_files)
        with pytest.raises(JournalError):
            journal.publish(a_result(2))
    journal.publish(a_result(2))
    assert set(journal.results()) == {a_result(1), a_result(2)}
    assert journal.findings == []


@pytest.mark.parametrize("limit", [0, 1, 500])
def test_a_write_cut_short_leaves_no_partial_result(tmp_path, limit):
    Journal(tmp_path).publish(a_result(1))
    process = SPAWN.Process(target=_publish_under_a_file_size_limit, args=(str(tmp_path), limit))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert leftovers(tmp_path) == []
    assert Journal(tmp_path).results() == (a_result(1),)


@pytest.mark.parametrize("links", [True, False])
def test_one_of_several_racing_writers_wins_each_cell_and_no_result_is_lost(tmp_path, links):
    barrier = SPAWN.Barrier(3)
    writers = [SPAWN.Process(target=_publish_mine, args=(str(tmp_path), links, number, barrier)) for number in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    results = Journal(tmp_path).results()
    assert sorted(result.cell.rank for result in results) == list(range(1, 41))
    assert sum(process.exitcode for process in writers) == 80  # findings: every loser tells
    assert len(list((tmp_path / "quarantine").iterdir())) == 80
    assert leftovers(tmp_path) == []


def test_readers_that_tidy_up_take_nothing_from_a_writer(tmp_path):
    started, stop = SPAWN.Event(), SPAWN.Event()
    process = SPAWN.Process(target=_rebuild_over_and_over, args=(str(tmp_path), started, stop))
    process.start()
    started.wait()
    journal = Journal(tmp_path)
    try:
        for rank in range(1, 101):
            journal.publish(a_result(rank))
            journal.publish(a_result(rank))
    finally:
        stop.set()
        process.join()
    assert process.exitcode == 0
    assert len(journal.results()) == 100
    assert journal.findings == []


def test_a_writer_whose_temporary_file_was_removed_after_a_rival_won_succeeds(tmp_path, monkeypatch):
    real = os.link

    def slowly(source: Path, target: Path) -> None:
        """Another run publishes the same cell and ends before this one gets to its link."""
        monkeypatch.setattr(os, "link", real)
        other = Journal(tmp_path)
        other.publish(a_result())
        other.write_table()
        real(source, target)

    monkeypatch.setattr(os, "link", slowly)
    journal = Journal(tmp_path)
    journal.publish(a_result())
    assert journal.results() == (a_result(),)
    assert journal.findings == []
    assert leftovers(tmp_path) == []


WRITER = """
import sys
from helpers import cuts, journals
from memlaw.sweep.journal import Journal
journal = Journal(sys.argv[1])
with cuts.intercepted(lambda name: None, links=sys.argv[2] == "True"):
    for rank in range(1, 100_000):
        journal.publish(journals.a_result(rank))
        print(rank, flush=True)
"""


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.05])
def test_what_was_acknowledged_survives_a_kill(tmp_path, delay, links):
    search = {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(links)],
        stdout=subprocess.PIPE, text=True, env=os.environ | search,
    ) as process:  # fmt: skip
        first = process.stdout.readline()
        time.sleep(delay)
        process.kill()
        acknowledged = {int(rank) for rank in [first, *process.stdout.read().split("\n")[:-1]]}
    journal = Journal(tmp_path)
    recorded = {result.cell.rank for result in journal.results()}
    assert recorded >= acknowledged
    assert len(recorded - acknowledged) <= 1
    assert journal.findings == []


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_publication_that_fails_at_any_call_is_not_acknowledged_or_done_and_the_next_one_is(tmp_path, code, links):
    for number in itertools.count():
        journal = Journal(tmp_path / str(number))
        cut = cuts.Cut(number, cuts.fails(code))
        acknowledged = False
        with contextlib.suppress(JournalError), cuts.intercepted(cut, links=links):
            journal.publish(a_result())
            acknowledged = True
        assert Journal(journal.root).results() in ([(a_result(),)] if acknowledged else [(a_result(),), ()])
        with cuts.intercepted(lambda _name: None, links=links):
            journal.publish(a_result())
        assert journal.results() == (a_result(),)
        assert journal.findings == []
        journal.write_table()
        assert leftovers(journal.root) == []
        if not cut.struck:
            break
    assert number > (15 if links else 25)


def test_reading_a_journal_needs_neither_torch_nor_pyarrow(tmp_path):
    Journal(tmp_path).publish(a_result())
    script = (
        "import sys, json, memlaw.sweep.journal as j; n = len(j.Journal(sys.argv[1]).results()); "
        "print(json.dumps([n, sorted({'torch', 'transformers', 'pyarrow', 'numpy'} & sys.modules.keys())]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, []]
