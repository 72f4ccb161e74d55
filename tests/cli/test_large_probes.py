"""The command line of large sweeps: where they run, how they are divided, their files, and when there is enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.commands import Run, assert_refused
from memlaw.sweep.journal import Journal

GRID = ("--ranks", "1,2", "--lengths", "12,24", "--steps", 5)


def probe(run: Run, facts: Path, model: Path, out: Path, *more: object) -> dict[str, object]:
    return run("probe", facts, "--model", model, *GRID, "--out", out, *more, "--json").document


@pytest.fixture
def probed(run: Run, model: Path, facts: Path, tmp_path: Path) -> Path:
    out = tmp_path / "P"
    probe(run, facts, model, out)
    return out


def test_shards_divide_the_cells_and_one_run_finds_nothing_missing(
    run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    parts = [probe(run, facts, model, out, "--shard", f"{part}/2") for part in (1, 2)]
    assert [part["finished"] for part in parts] == [2, 2]
    whole = {path.name: path.read_bytes() for path in (probed / "cells").iterdir()}
    assert {path.name: path.read_bytes() for path in (out / "cells").iterdir()} == whole


@pytest.mark.slow
def test_isolated_packs_give_the_same_cells(run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path) -> None:
    out = tmp_path / "isolated"
    assert probe(run, facts, model, out, "--isolate", "--minutes-per-pack", 10)["finished"] == 4
    ours = [(r.cell.key, r.loss_final) for r in Journal(out).results()]
    assert ours == [(r.cell.key, r.loss_final) for r in Journal(probed).results()]


def test_a_prefix_cache_changes_no_result(run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path) -> None:
    probe(run, facts, model, tmp_path / "Q", "--prefix-cache", tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.safetensors"))
    for path in (probed / "cells").iterdir():
        assert (tmp_path / "Q" / "cells" / path.name).read_bytes() == path.read_bytes()


def test_a_budget_chooses_the_grid_and_says_why_it_stopped(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "B"
    ran = run("probe", facts, "--model", model, "--budget", "1h", "--steps", 3, "--out", out, "--json")
    lengths = {result.cell.length for result in Journal(out).results()}
    assert ran.document["finished"] > 0
    assert lengths <= {12, 24, 48}
    assert_refused(
        run("probe", facts, "--model", model, "--budget", "soon", "--out", out),
        "is not a duration. Write it as 90s, 10m",
    )
    two = ("--methods", "sft,ot", "--budget", "9s")
    assert_refused(run("probe", facts, "--model", model, *two, "--out", out), "a law holds for one method")


def test_the_status_of_a_probe_needs_neither_facts_nor_a_model(run: Run, probed: Path, tmp_path: Path) -> None:
    found = run("probe", "--status", probed, "--json").document
    assert (found["cells"], found["finished"], found["failed"]) == (4, 4, 0)
    next((probed / "cells").iterdir()).unlink()
    text = run("probe", "--status", probed).out
    assert "3 of 4 cells finished" in text
    assert "1 done, 1 partly, 0 waiting" in text
    assert_refused(run("probe", "--status", tmp_path / "nothing"), "is not a probe directory")


def test_a_journal_is_verified_mended_and_exported(run: Run, probed: Path, tmp_path: Path) -> None:
    assert run("journal", "verify", probed, "--json").document["intact"] is True
    damaged = sorted((probed / "cells").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes().replace(b"sft", b"SFT", 1))
    ran = run("journal", "verify", probed)
    assert ran.code == 2
    assert damaged.name in ran.out
    assert damaged.exists()
    mended = run("journal", "rebuild", probed, "--json").document
    assert mended["rows"] == 3
    assert not damaged.exists()
    assert run("journal", "verify", probed).code == 0
    table = tmp_path / "table.jsonl"
    assert run("journal", "export", probed, "--out", table, "--json").document == {"out": str(table), "rows": 3}
    assert len([json.loads(line) for line in table.read_text().splitlines()]) == 3
    assert_refused(run("journal", "export", probed, "--out", tmp_path / "table.xls"), "has no suffix of a known format")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--shard", "3/2"), "not of the form 3/20"),
        (("--isolate", "--engine", "ray"), "--isolate is an engine of its own"),
        (("--ray-address", "here:1"), "add --engine ray"),
        (("--minutes-per-pack", "1"), "add --isolate"),
        (("--isolate", "--minutes-per-pack", "0"), "The time limit of a pack is 0.0 minutes"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_any_work(
    run: Run, model: Path, facts: Path, tmp_path: Path, more: tuple[str, ...], sentence: str
) -> None:
    assert_refused(run("probe", facts, "--model", model, *GRID, "--out", tmp_path / "P", *more), sentence)
    assert not (tmp_path / "P").exists()


def test_a_model_that_changed_its_device_is_another_run(
    run: Run, model: Path, facts: Path, probed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell of a CPU and one of a GPU differ in their last bits, so they are not the same cell."""
    spec = json.loads((probed / "probe.json").read_text())["body"]
    assert spec["identity"]["device"] == "cpu"
    assert spec["identity"]["libraries"].startswith("torch ")
    shutil.rmtree(probed / "cells")
    monkeypatch.setattr("memlaw.sweep.grid.libraries_used", lambda: "torch 99")
    ran = run("probe", facts, "--model", model, *GRID, "--out", probed)
    assert_refused(ran, "belongs to another run, which differs in libraries")
