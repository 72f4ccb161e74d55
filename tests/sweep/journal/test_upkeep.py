"""`memlaw journal verify`, `rebuild` and `export`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from helpers.journals import SPEC, a_failure, a_result, cell_file
from memlaw.core import files
from memlaw.core.canonical import to_dict
from memlaw.core.cells import result_to_dict
from memlaw.core.errors import ConfigError, JournalError
from memlaw.core.sealed import Fault
from memlaw.sweep.journal import COLUMNS, Journal, export, rebuild, verify


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two finished cells, one that diverged and one that failed."""
    journal = Journal(tmp_path / "P")
    journal.claim(SPEC)
    diverged = a_result(3, loss_final=None, status="diverged", acc_token=None, message="no number at step 7")
    for result in (a_result(1), a_result(2), diverged, a_failure(4)):
        journal.publish(result)
    return journal.root


def snapshot(root: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(root)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in root.rglob("*")
    }


def test_an_intact_journal_is_counted(root):
    report = verify(root)
    assert (report.finished, report.diverged, report.failed) == (2, 1, 1)
    assert report.intact
    assert report.damaged == report.unreadable == report.quarantined == report.leftovers == ()
    assert to_dict(report)["out"] == str(root)


def test_every_fault_is_listed_and_nothing_is_changed(root):
    key = a_result(1).cell.key
    path = cell_file(root, a_result(1))
    path.write_bytes(path.read_bytes().replace(b"4.0", b"4.1"))
    cell_file(root, a_result(2)).write_bytes(b"")
    Journal(root).publish(a_result(3, loss_final=0.25))
    (root / "failures" / "name.json").mkdir()
    (root / "cells" / f".{key}.json.0123.tmp").touch()
    saved = root / "checkpoints" / "pack" / "7"
    saved.mkdir(parents=True)
    (saved / "state.json").write_text("{}")
    files.sign(saved)
    (saved / "state.json").write_text("{ }")
    before = snapshot(root)

    report = verify(root)
    assert snapshot(root) == before
    assert not report.intact
    assert (report.finished, report.diverged, report.failed) == (0, 1, 1)
    other = a_result(2).cell.key
    cells = {
        Fault(f"cells/{key}.json", "its SHA-256 does not match"),
        Fault(f"cells/{other}.json", "it is cut short or not a file that memlaw sealed"),
    }
    assert set(report.damaged) == cells | {Fault("checkpoints/pack/7", "state.json is not the file that was saved")}
    assert report.unreadable == (Fault("failures/name.json", "Is a directory"),)
    assert len(report.quarantined) == 1
    assert report.leftovers == (f"cells/.{key}.json.0123.tmp",)


def test_cells_still_count_if_probe_json_is_damaged_or_missing(root):
    path = root / "probe.json"
    path.write_bytes(path.read_bytes().replace(b"[1,2]", b"[1,3]"))
    report = verify(root)
    assert report.damaged == (Fault("probe.json", "its SHA-256 does not match"),)
    assert report.finished == 2
    path.unlink()
    assert verify(root).unreadable == (Fault("probe.json", "No such file or directory"),)


def test_a_file_of_another_version_is_unreadable_not_damaged(root):
    from helpers.journals import sealed

    path = cell_file(root, a_result(1))
    path.write_text(sealed(result_to_dict(a_result(1)) | {"entropy": 0.1}))
    report = verify(root)
    assert report.damaged == ()
    assert report.unreadable == (Fault(f"cells/{path.name}", "it has fields or values of another version of memlaw"),)


def test_the_table_is_current_outdated_or_absent(root):
    assert verify(root).table == "absent"
    Journal(root).write_table()
    assert verify(root).table == "current"
    Journal(root).publish(a_result(5))
    assert verify(root).table == "outdated"
    Journal(root).write_table()
    table = root / "results.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    assert verify(root).table == "outdated"
    assert verify(root).intact


@pytest.mark.parametrize("work", [verify, rebuild, lambda path: export(path, path / "x.csv")])
def test_another_directory_is_not_read_as_a_probe(tmp_path, work):
    with pytest.raises(JournalError, match=r"is not a probe directory: it has no probe\.json\. Check"):
        work(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rebuilding_makes_the_table_from_the_cells_and_puts_damaged_ones_aside(root):
    Journal(root).write_table()
    cell_file(root, a_result(1)).write_text("{")
    (root / "failures" / f".{a_failure(4).cell.key}.json.0123.tmp").touch()
    (root / ".results.parquet.0123.tmp").touch()
    report = rebuild(root)
    assert report.rows == 3
    assert report.restored == ()
    [finding] = report.findings
    assert finding.startswith(f"cells/{a_result(1).cell.key}.json was damaged")
    after = verify(root)
    assert (after.intact, after.table, after.leftovers, len(after.quarantined)) == (True, "current", (), 1)
    assert to_dict(report)["rows"] == 3


def test_an_intact_result_in_quarantine_stands_in_for_one_that_was_lost(root):
    second = a_result(1, loss_final=0.25)
    journal = Journal(root)
    journal.publish(second)
    journal.publish(a_result(2, loss_final=0.25))
    cell_file(root, second).write_text("{")
    report = rebuild(root)
    assert report.restored == (second.cell.key,)
    assert set(Journal(root).results()) >= {second, a_result(2)}
    assert len(list((root / "quarantine").iterdir())) == 2  # the damaged one, and the second result of the other cell
    assert rebuild(root).restored == ()


def test_the_same_rows_come_out_of_every_format(root, tmp_path):
    for name in ("results.csv", "results.jsonl", "deeper/results.parquet"):
        assert export(root, tmp_path / name) == 4
    rows = pyarrow.parquet.read_table(tmp_path / "deeper" / "results.parquet").to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == rows
    assert list(lines[0]) == list(COLUMNS)
    with (tmp_path / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [
        {name: "" if value is None else str(value).replace(" ", "") for name, value in row.items()} for row in rows
    ] == [{name: value.replace(" ", "") for name, value in row.items()} for row in table]


def test_an_export_is_made_of_verified_cells_and_not_of_the_table(root, tmp_path):
    Journal(root).write_table()
    (root / "results.parquet").write_bytes(b"anything")
    cell_file(root, a_result(1)).write_text("{")
    assert export(root, tmp_path / "results.csv") == 3


def test_text_that_is_hard_for_csv_and_json_survives(tmp_path):
    message = 'comma, "quote"\nline\u2028\x00 \ud800'
    journal = Journal(tmp_path / "P")
    journal.claim(SPEC)
    journal.publish(a_result(1, message=message))
    export(journal.root, tmp_path / "r.jsonl")
    readable = message.replace("\ud800", "?")
    assert json.loads((tmp_path / "r.jsonl").read_text())["message"] == readable
    assert export(journal.root, tmp_path / "r.parquet") == 1
    export(journal.root, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["message"] == readable


def test_an_unknown_suffix_and_an_unwritable_place_are_refused(root, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"r\.xlsx has no suffix of a known format\. Choose a name that ends in \.csv, \.jsonl, \.parquet\.",
    ):
        export(root, tmp_path / "r.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(
        JournalError, match=r"Cannot write .*r\.csv: (File exists|Not a directory)\. The journal is unchanged"
    ):
        export(root, tmp_path / "file" / "r.csv")
