from __future__ import annotations

import json
import shutil
from pathlib import Path

from helpers.commands import Run, assert_refused, write


def test_report_is_written_where_it_was_asked_for(
    run: Run, probed: Path, model: Path, facts: Path, tmp_path: Path
) -> None:
    page = tmp_path / "new" / "report.html"
    assert run("report", probed, "--out", page, "--json").document == {"report": str(page)}
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_recall_beside_a_probe_is_in_its_report(
    run: Run, probed: Path, model: Path, facts: Path, adapter: Path, tmp_path: Path
) -> None:
    room = tmp_path / "room"
    shutil.copytree(probed, room / "probe")
    arguments = ("recall", facts, "--model", model, "--adapter", adapter, "--decode", "--out", room / "recall.json")
    assert run(*arguments).code == 0
    assert run("report", room, "--out", room / "report.html").code == 0
    assert "All 4 records came back verbatim and certified" in (room / "report.html").read_text(encoding="utf-8")


def test_a_directory_without_results_has_no_report(run: Run, adapter: Path, probed: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert_refused(
        run("report", tmp_path / "none", "--out", page), "contains neither a probe (probe.json) nor recall.json"
    )
    bare = shutil.copytree(adapter, tmp_path / "bare")
    recorded = json.loads((bare / "memlaw_adapter.json").read_text())
    write(bare / "memlaw_adapter.json", json.dumps({k: v for k, v in recorded.items() if k != "side_effects"}))
    assert_refused(run("report", bare, "--out", page), "so the report would be empty")
    assert_refused(run("report", probed, "--out", tmp_path), "cannot be written")
    write(tmp_path / "recall.json", "{")
    assert_refused(run("report", tmp_path, "--out", page), "recall.json is not JSON", "damaged or cut short")
    write(tmp_path / "recall.json", "{}")
    assert_refused(run("report", tmp_path, "--out", page), "is not a recall report with per-token numbers")
    assert not page.exists()


def test_an_adapter_alone_is_reported_with_what_it_cost(run: Run, adapter: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert run("report", adapter, "--out", page).code == 0
    told = page.read_text(encoding="utf-8")
    assert "4 of 4" in told[told.index('id="harm"') :]


def test_a_probe_too_small_for_a_law_still_has_a_report(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    grid = ("--ranks", "1,2", "--lengths", "12", "--steps", 3)
    assert run("probe", facts, "--model", model, *grid, "--out", tmp_path / "P").code == 0
    assert_refused(run("fit", tmp_path / "P"), "All cells have one length")
    assert run("report", tmp_path / "P", "--out", tmp_path / "r.html").code == 0
    assert "All cells have one length" in (tmp_path / "r.html").read_text(encoding="utf-8")
