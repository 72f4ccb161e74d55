"""The journal keeps what was acknowledged: through kills, races, full disks and damaged files."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cuts
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlaw.errors import JournalError
from memlaw.journal import COLUMNS, Journal, ProbeSpec
from memlaw.records import LN2, Cell, CellResult, TrainConfig, canonical_json, digest, to_dict

SPEC = ProbeSpec(identity={"model": "m", "ranks": [1, 2]}, packs=(("a", "b"), ("c",)), about={"model": "tiny"})
SPAWN = multiprocessing.get_context("spawn")

CONTRACT = [
    "key", "model", "placement", "rank", "parameters", "length", "method", "seed", "steps", "loss_init", "loss_final",
    "delta_loss", "acc_token", "acc_em", "ordered", "certified", "status",
]  # fmt: skip

BITS = ("loss_memoryless", "certified_tokens")
"""Fields of a result that came later."""


def a_result(rank: int = 1, *, loss_final: float | None = 0.5, **changes: Any) -> CellResult:
    cell = Cell(
        model="model", tokenizer="tokenizer", data="data", placement="down_proj@2", rank=rank, length=10,
        train=TrainConfig(steps=100), dtype="float32",
    )  # fmt: skip
    delta = None if loss_final is None else 4.0 - loss_final
    measured = CellResult(
        cell=cell, status="finished", steps=100, parameters=64 * rank, loss_init=4.0, loss_final=loss_final,
        delta_loss=delta, acc_token=0.9, acc_em=0.5, ordered=9, certified=1, records=2,
    )  # fmt: skip
    return dataclasses.replace(measured, **changes)


def a_failure(rank: int = 1, message: str = "out of memory") -> CellResult:
    nothing = dict.fromkeys(["loss_init", "acc_token", "acc_em", "ordered", "certified"])
    return a_result(rank, loss_final=None, status="failed", steps=0, message=message, **nothing)


def cell_file(root: Path, result: CellResult) -> Path:
    return root / "cells" / f"{result.cell.key}.json"


def sealed(body: Any) -> str:
    """The format of a journal file, spelled out."""
    return canonical_json({"body": body, "sha256": digest(body)}) + "\n"


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*.tmp"))


# --- one result ------------------------------------------------------------------------------------------------------


def test_a_published_result_is_one_file_named_by_its_key_and_sealed_with_its_sha256(tmp_path):
    result = a_result()
    Journal(tmp_path).publish(result)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{result.cell.key}.json"]
    assert cell_file(tmp_path, result).read_text() == sealed(to_dict(result))
    assert Journal(tmp_path).results() == (result,)
    assert Journal(tmp_path).holds(result.cell.key)


@given(
    loss=st.floats(allow_nan=False, allow_infinity=False),
    message=st.text() | st.sampled_from(["\ud800", "line\u2028line", "\x00"]),
    steps=st.integers(0, 2**62),
)
def test_every_finite_result_reads_back_as_it_was(tmp_path_factory, loss, message, steps):
    root = tmp_path_factory.mktemp("journal")
    result = a_result(loss_init=loss, message=message, steps=steps)
    journal = Journal(root)
    journal.publish(result)
    assert journal.results() == (result,)
    assert journal.findings == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_cannot_be_published(tmp_path, number):
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


def test_of_two_results_of_a_cell_the_first_counts_and_the_other_is_kept_aside(tmp_path):
    journal = Journal(tmp_path)
    first, second = a_result(loss_final=0.5), a_result(loss_final=0.6)
    journal.publish(first)
    journal.publish(second)
    assert journal.results() == (first,)
    [finding] = journal.findings
    assert finding.startswith(f"Cell {first.cell.key} was trained again with another result: the first one counts")
    [aside] = (tmp_path / "quarantine").iterdir()
    assert aside.read_text() == sealed(to_dict(second))


def test_results_are_sorted_by_key_whatever_the_order_they_came_in(tmp_path):
    journal = Journal(tmp_path)
    for rank in (3, 1, 2):
        journal.publish(a_result(rank))
    keys = [result.cell.key for result in journal.results()]
    assert keys == sorted(keys)
    assert len(keys) == 3


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_is_told_until_the_cell_succeeds_and_does_not_stand_in_its_way(tmp_path):
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


# --- damage ----------------------------------------------------------------------------------------------------------


def test_every_single_flipped_bit_is_detected_and_the_file_kept_aside(tmp_path):
    result = a_result()
    Journal(tmp_path).publish(result)
    path = cell_file(tmp_path, result)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        journal = Journal(tmp_path)
        assert journal.results() == (), bit
        assert len(journal.findings) == 1
        assert not path.exists()
    assert len(list((tmp_path / "quarantine").iterdir())) == 8 * len(good)


def _other_key(body: dict[str, Any]) -> str:
    return sealed(body | {"cell": body["cell"] | {"rank": 99}})


DAMAGE = {
    "empty": lambda body: "",
    "torn": lambda body: sealed(body)[:-200],
    "one newline more": lambda body: sealed(body) + "\n",
    "not JSON": lambda body: "results!",
    "not an object": lambda body: "[1, 2]",
    "no seal": lambda body: canonical_json(body),
    "a body that is no result": lambda body: sealed(["no", "result"]),
    "a body without a cell": lambda body: sealed({"rank": 1}),
    "another cell": _other_key,
    "the hash of something else": lambda body: canonical_json({"body": body, "sha256": digest("else")}) + "\n",
    "NaN": lambda body: sealed(body).replace("4.0", "NaN"),
    "nested without end": lambda body: "[" * 100_000,
    "not UTF-8": lambda body: sealed(body).encode() + b"\xff",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_moved_to_quarantine_told_and_not_counted(tmp_path, damage):
    journal = Journal(tmp_path)
    result, other = a_result(1), a_result(2)
    journal.publish(result)
    journal.publish(other)
    content = damage(to_dict(result))
    content = content if isinstance(content, bytes) else content.encode()
    cell_file(tmp_path, result).write_bytes(content)

    assert journal.results() == (other,)
    [finding] = journal.findings
    assert finding.startswith(f"cells/{result.cell.key}.json was damaged (")
    assert finding.endswith("it is in quarantine. The same probe command trains the cell again.")
    [aside] = (tmp_path / "quarantine").iterdir()
    assert aside.read_bytes() == content
    assert not journal.holds(result.cell.key)


def test_a_damaged_cell_is_not_held_and_an_intact_one_is_read_once(tmp_path, monkeypatch):
    Journal(tmp_path).publish(a_result(1))
    Journal(tmp_path).publish(a_result(2))
    flipped = bytearray(cell_file(tmp_path, a_result(1)).read_bytes())
    flipped[100] ^= 1
    cell_file(tmp_path, a_result(1)).write_bytes(flipped)
    journal = Journal(tmp_path)
    assert not journal.holds(a_result(1).cell.key)
    assert "it is in quarantine" in journal.findings[0]
    assert journal.holds(a_result(2).cell.key)

    def no_reading(path: Path) -> bytes:
        raise AssertionError(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", no_reading)
        assert journal.holds(a_result(2).cell.key)
    cell_file(tmp_path, a_result(2)).unlink()
    assert not journal.holds(a_result(2).cell.key)


def test_a_file_is_judged_by_its_content_whatever_its_times(tmp_path):
    journal = Journal(tmp_path)
    for rank in (1, 2):
        journal.publish(a_result(rank))
    for rank, moment in ((1, 0), (2, 2**33)):
        os.utime(cell_file(tmp_path, a_result(rank)), (moment, moment))
    assert set(Journal(tmp_path).results()) == {a_result(1), a_result(2)}
    journal.publish(a_result(1))
    assert journal.findings == []


def test_a_good_result_moved_by_mistake_is_put_back(tmp_path, monkeypatch):
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


def test_a_damaged_file_that_another_process_was_quicker_to_move_is_no_trouble(tmp_path, monkeypatch):
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


def test_a_damaged_file_that_cannot_be_moved_does_not_count_and_stops_whoever_needs_its_place(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    cell_file(tmp_path, a_result()).write_text("{")
    (tmp_path / "quarantine").touch()
    assert journal.results() == ()
    assert "it cannot be moved to quarantine: File exists." in journal.findings[0]
    with pytest.raises(JournalError, match=r"is damaged and cannot be moved to quarantine.*Move it out of the way"):
        journal.publish(a_result())


def test_a_damaged_failure_is_not_told_as_one(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_failure())
    (tmp_path / "failures" / f"{a_failure().cell.key}.json").write_text("{")
    assert journal.results() == ()
    assert "failures/" in journal.findings[0]


def test_an_intact_file_with_unknown_fields_is_another_versions_and_stops_the_reading(tmp_path):
    body = to_dict(a_result()) | {"entropy": 0.1}
    path = cell_file(tmp_path, a_result())
    path.parent.mkdir()
    path.write_text(sealed(body))
    with pytest.raises(
        JournalError, match=r"is intact but has other fields than this version of memlaw knows.*newer one"
    ):
        Journal(tmp_path).results()
    assert path.exists()


def test_an_intact_file_with_a_setting_out_of_range_is_another_versions_too(tmp_path):
    body = to_dict(a_result())
    body["cell"]["train"]["method"] = "a later one"
    path = tmp_path / "cells" / f"{digest(body['cell'])}.json"
    path.parent.mkdir()
    path.write_text(sealed(body))
    with pytest.raises(JournalError, match="or other values.*newer one"):
        Journal(tmp_path).results()
    assert path.exists()


def test_a_cell_of_an_older_version_with_fewer_settings_is_still_recognised(tmp_path):
    body = to_dict(a_result())
    del body["cell"]["train"]["init"]
    key = digest(body["cell"])
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{key}.json").write_text(sealed(body))
    journal = Journal(tmp_path)
    assert journal.results() == (a_result(),)
    journal.write_table()
    assert pyarrow.parquet.read_table(tmp_path / "results.parquet")["key"].to_pylist() == [key]


def test_files_of_killed_writers_are_neither_read_nor_kept(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    (tmp_path / "cells" / f".{a_result().cell.key}.json.abcdef.tmp").write_text("{")
    assert journal.results() == (a_result(),)
    assert journal.findings == []
    journal.write_table()
    assert leftovers(tmp_path) == []


# --- faults of the disk ----------------------------------------------------------------------------------------------


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
        f"Cannot write {a_result(2).cell.key}.json in {tmp_path / 'cells'}: {os.strerror(code)}. It was not recorded; "
        "what was recorded before is safe. Make room or repair the disk, then repeat the command: it trains only what "
        "is missing."
    )
    assert leftovers(tmp_path) == []
    assert journal.results() == (a_result(1),)
    journal.publish(a_result(2))
    assert set(journal.results()) == {a_result(1), a_result(2)}


def test_a_folder_that_cannot_be_synced_means_no_acknowledgement_but_no_harm(tmp_path, monkeypatch):
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


def _publish_under_a_file_size_limit(root: str, limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Journal(root).publish(a_result(2))
    except JournalError as error:
        raise SystemExit(7 if error.__cause__.errno == errno.EFBIG else 8) from None


@pytest.mark.parametrize("limit", [0, 1, 500])
def test_a_write_the_system_cuts_short_leaves_no_part_of_a_result(tmp_path, limit):
    Journal(tmp_path).publish(a_result(1))
    process = SPAWN.Process(target=_publish_under_a_file_size_limit, args=(str(tmp_path), limit))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert leftovers(tmp_path) == []
    assert Journal(tmp_path).results() == (a_result(1),)


# --- many writers ----------------------------------------------------------------------------------------------------


def _publish_mine(root: str, links: bool, writer: int, barrier: Any) -> None:
    journal = Journal(root)
    barrier.wait()
    with cuts.intercepted(lambda _name: None, links=links):
        for rank in range(1, 41):
            journal.publish(a_result(rank, message=f"by writer {writer}"))
    raise SystemExit(len(journal.findings))


@pytest.mark.parametrize("links", [True, False])
def test_of_racing_writers_one_wins_each_cell_and_no_result_is_lost(tmp_path, links):
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


def _rebuild_over_and_over(root: str, started: Any, stop: Any) -> None:
    journal = Journal(root)
    while not stop.is_set():
        journal.write_table()
        started.set()


def test_runs_that_read_and_tidy_up_take_nothing_from_one_that_writes(tmp_path):
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


def test_a_writer_whose_temporary_file_was_swept_up_comes_too_late_and_is_content(tmp_path, monkeypatch):
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
import sys, cuts, test_journal
journal = test_journal.Journal(sys.argv[1])
with cuts.intercepted(lambda name: None, links=sys.argv[2] == "True"):
    for rank in range(1, 100_000):
        journal.publish(test_journal.a_result(rank))
        print(rank, flush=True)
"""


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.05])
def test_what_was_acknowledged_survives_a_kill(tmp_path, delay, links):
    search = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
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


# --- whose directory -------------------------------------------------------------------------------------------------


def test_a_claim_makes_the_directory_and_the_same_run_may_come_again(tmp_path):
    out = tmp_path / "a" / "b"
    assert Journal(out).claim(SPEC) == SPEC
    assert Journal(out).claim(SPEC) == SPEC
    assert Journal(out).spec() == SPEC
    assert [path.name for path in out.iterdir()] == ["probe.json"]


def test_the_packs_of_the_first_run_hold_for_every_later_one(tmp_path):
    Journal(tmp_path).claim(SPEC)
    repacked = dataclasses.replace(SPEC, packs=(("a",), ("b", "c")), about={"model": "another path"})
    assert Journal(tmp_path).claim(repacked) == SPEC


def test_another_run_is_told_what_differs_and_the_way_out(tmp_path):
    Journal(tmp_path).claim(SPEC)
    before = (tmp_path / "probe.json").read_bytes()
    other = ProbeSpec(identity={"model": "m", "ranks": [1, 2, 4], "steps": 10}, packs=())
    with pytest.raises(JournalError) as caught:
        Journal(tmp_path).claim(other)
    assert str(caught.value) == (
        f"{tmp_path} belongs to another run; they differ in ranks (there [1,2], here [1,2,4]); steps (there nothing, "
        "here 10). The results of two runs in one directory would be taken for one sweep. Give another --out, or "
        "repeat the flags of that run."
    )
    assert (tmp_path / "probe.json").read_bytes() == before


def test_long_values_are_shortened_in_the_message(tmp_path):
    Journal(tmp_path).claim(dataclasses.replace(SPEC, identity={"data": "a" * 64}))
    with pytest.raises(JournalError, match=r"data \(there a{24}\.\.\.a{8}, here b{24}\.\.\.b{8}\)"):
        Journal(tmp_path).claim(dataclasses.replace(SPEC, identity={"data": "b" * 64}))


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        JournalError,
        match=r"is not the directory of a probe: it has no probe\.json but holds holiday\.jpg and more\. "
        r"Nothing was written there: give another --out\.",
    ):
        Journal(tmp_path).claim(SPEC)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holiday.jpg", "thesis.tex"]


def test_a_file_in_place_of_the_directory_is_told(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(JournalError, match=r"Cannot read .*probe\.json: Not a directory"):
        Journal(tmp_path / "out").claim(SPEC)


def test_a_directory_in_which_a_run_died_at_once_may_be_claimed(tmp_path):
    (tmp_path / ".probe.json.0123.tmp").write_text('{"body":')
    assert Journal(tmp_path).claim(SPEC) == SPEC
    Journal(tmp_path).write_table()
    assert leftovers(tmp_path) == []


def test_a_damaged_probe_json_is_told_with_a_way_to_keep_the_cells(tmp_path):
    journal = Journal(tmp_path)
    journal.claim(SPEC)
    journal.publish(a_result())
    path = tmp_path / "probe.json"
    path.write_bytes(path.read_bytes().replace(b"[1,2]", b"[1,3]"))
    with pytest.raises(
        JournalError, match=r"is damaged \(its SHA-256 does not match\).*copy the files of cells/ there"
    ):
        journal.claim(SPEC)
    elsewhere = tmp_path / "elsewhere"
    Journal(elsewhere).claim(SPEC)
    (tmp_path / "cells").rename(elsewhere / "cells")
    assert Journal(elsewhere).results() == (a_result(),)


def test_a_directory_that_is_no_probe_is_not_read_as_one(tmp_path):
    with pytest.raises(JournalError, match=r"is not the directory of a probe: it has no probe\.json"):
        Journal(tmp_path / "nowhere").spec()


def _claim_mine(root: str, number: int, barrier: Any, answers: Any) -> None:
    barrier.wait()
    answers.put(Journal(root).claim(dataclasses.replace(SPEC, about={"run": number})).about)


def test_runs_that_claim_a_directory_at_once_agree_on_one_spec(tmp_path):
    barrier, answers = SPAWN.Barrier(3), SPAWN.Queue()
    runs = [SPAWN.Process(target=_claim_mine, args=(str(tmp_path), number, barrier, answers)) for number in range(3)]
    for process in runs:
        process.start()
    heard = [answers.get() for _ in runs]
    for process in runs:
        process.join()
    assert heard == [Journal(tmp_path).spec().about] * 3


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_has_the_promised_columns_first_and_one_row_a_cell_sorted_by_key(tmp_path):
    journal = Journal(tmp_path)
    for result in (a_result(2), a_failure(3), a_result(1)):
        journal.publish(result)
    journal.write_table()
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    assert table.column_names[: len(CONTRACT)] == CONTRACT
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    row = next(row for row in rows if row["rank"] == 1)
    assert row["loss_init"] == 4.0
    assert row["delta_loss"] == 3.5
    assert row["steps"] == row["max_steps"] == 100
    assert row["method"] == "sft"
    assert row["seed"] == 42
    assert row["learning_rate"] == TrainConfig.learning_rate
    failed = next(row for row in rows if row["rank"] == 3)
    assert (failed["status"], failed["message"], failed["loss_init"]) == ("failed", "out of memory", None)


def test_the_table_leaves_no_field_of_a_result_out():
    names = {field.name for record in (Cell, CellResult, TrainConfig) for field in dataclasses.fields(record)}
    derived = {"key", "max_steps", "stored_bits", "certified_bits", "bits_per_parameter"}
    assert set(COLUMNS) == names - {"cell", "train"} | derived


def test_the_table_has_the_bits_of_cells_where_they_are_known(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result(1, loss_final=1.0, loss_memoryless=3.0, certified_tokens=5))
    journal.publish(a_failure(2))
    journal.write_table()
    rows = sorted(pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist(), key=lambda row: row["rank"])
    bits = [[row[name] for name in ("stored_bits", "certified_bits", "bits_per_parameter")] for row in rows]
    stored, certified = 10 * 2.0 / LN2, 5 * 3.0 / LN2
    assert bits == [pytest.approx([stored, certified, stored / 64]), [None] * 3]


def test_a_cell_written_before_bits_were_measured_is_read_and_counts(tmp_path):
    result = a_result()
    older = {name: value for name, value in to_dict(result).items() if name not in BITS}
    (tmp_path / "cells").mkdir()
    cell_file(tmp_path, result).write_text(sealed(older))
    journal = Journal(tmp_path)
    assert journal.holds(result.cell.key)
    assert journal.results() == (result,)
    journal.write_table()
    [row] = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert (row["loss_final"], row["loss_memoryless"], row["stored_bits"]) == (0.5, None, None)
    assert journal.findings == []


def test_the_same_cells_give_the_same_bytes_and_types_even_without_a_row(tmp_path):
    tables = []
    for name, order in (("a", (1, 2, 3)), ("b", (3, 1, 2))):
        journal = Journal(tmp_path / name)
        for rank in order:
            journal.publish(a_result(rank))
        journal.write_table()
        journal.write_table()
        tables.append((tmp_path / name / "results.parquet").read_bytes())
    assert tables[0] == tables[1]
    Journal(tmp_path / "empty").write_table()
    empty = pyarrow.parquet.read_table(tmp_path / "empty" / "results.parquet")
    assert empty.num_rows == 0
    assert empty.schema == pyarrow.parquet.read_schema(tmp_path / "a" / "results.parquet")


def test_the_table_can_be_deleted_and_rebuilt(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    journal.write_table()
    before = (tmp_path / "results.parquet").read_bytes()
    (tmp_path / "results.parquet").unlink()
    Journal(tmp_path).write_table()
    assert (tmp_path / "results.parquet").read_bytes() == before


# --- lightness -------------------------------------------------------------------------------------------------------


def test_reading_a_journal_needs_neither_torch_nor_pyarrow(tmp_path):
    Journal(tmp_path).publish(a_result())
    script = (
        "import sys, json, memlaw.journal as j; n = len(j.Journal(sys.argv[1]).results()); "
        "print(json.dumps([n, sorted({'torch', 'transformers', 'pyarrow', 'numpy'} & sys.modules.keys())]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, []]
