from __future__ import annotations

import json
from pathlib import Path

from helpers.commands import Run, assert_refused


def test_the_status_of_a_probe_needs_neither_facts_nor_a_model(run: Run, small_copy: Path, tmp_path: Path) -> None:
    progress = run("journal", "status", small_copy, "--json").document
    assert (progress["cells"], progress["finished"], progress["failed"]) == (4, 4, 0)
    next((small_copy / "cells").iterdir()).unlink()
    text = run("journal", "status", small_copy).out
    assert "3 of 4 cells finished" in text
    assert "1 done, 1 partly, 0 waiting" in text
    assert_refused(run("journal", "status", tmp_path / "nothing"), "is not a probe directory")


def test_probe_status_is_another_name_for_journal_status(run: Run, small: Path, tmp_path: Path) -> None:
    expected = run("journal", "status", small, "--json")
    assert run("probe", "--status", small, "--json") == expected
    assert run("probe", "--json", "--status", small) == expected
    assert run("probe", "--status", small) == run("journal", "status", small)
    assert_refused(run("probe", "--status", tmp_path / "nothing"), "is not a probe directory")
    assert_refused(run("probe", "facts.jsonl", "--status", small), "--status only reads a directory")
    assert_refused(run("probe", "--status", small, "--out", tmp_path), "--status only reads a directory")


def test_a_journal_is_verified_rebuilt_and_exported(run: Run, small_copy: Path, tmp_path: Path) -> None:
    assert run("journal", "verify", small_copy, "--json").document["intact"] is True
    damaged = sorted((small_copy / "cells").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes().replace(b"sft", b"SFT", 1))
    ran = run("journal", "verify", small_copy)
    assert ran.code == 2
    assert damaged.name in ran.out
    assert damaged.exists()
    rebuilt = run("journal", "rebuild", small_copy, "--json").document
    assert rebuilt["rows"] == 3
    assert not damaged.exists()
    assert run("journal", "verify", small_copy).code == 0
    table = tmp_path / "table.jsonl"
    assert run("journal", "export", small_copy, "--out", table, "--json").document == {"out": str(table), "rows": 3}
    assert len([json.loads(line) for line in table.read_text().splitlines()]) == 3
    assert_refused(
        run("journal", "export", small_copy, "--out", tmp_path / "table.xls"), "has no suffix of a known format"
    )
