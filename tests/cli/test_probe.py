from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from helpers import sample
from helpers.commands import RECORDS, SMALL_GRID, Run, assert_refused, jsonl, write
from helpers.words import words
from memlaw.cli.fit import bits_lines
from memlaw.cli.output import SHOWN
from memlaw.cli.probe import failure_lines
from memlaw.core.recall import LN2
from memlaw.sweep.journal import Journal


def test_probe_prints_its_counts_and_writes_the_promised_table(
    run: Run, model: Path, facts: Path, probed: Path
) -> None:
    again = ("probe", facts, "--model", model, "--ranks", "4,1,2", "--lengths", "48,12,24", "--methods", "ot,sft")
    ran = run(*again, "--steps", 30, "--out", probed, "--json")
    assert {"out": str(probed), "cells": 18, "finished": 18, "failed": 0}.items() <= ran.document.items()
    columns = [
        "key", "model", "placement", "rank", "parameters", "length", "method", "seed", "steps", "loss_init",
        "loss_final", "delta_loss", "acc_token", "acc_em", "ordered", "certified", "status",
    ]  # fmt: skip
    table = pyarrow.parquet.read_table(probed / "results.parquet")
    assert table.num_rows == 18
    assert set(columns) <= set(table.column_names)
    assert set(table["status"].to_pylist()) == {"finished"}


def test_a_config_file_gives_the_same_as_the_options(
    run: Run, model: Path, facts: Path, probed: Path, tmp_path: Path
) -> None:
    grid = "ranks: [1, 2, 4]\nlengths: [12, 24, 48]\nmethods: [sft, ot]\nsteps: 7\n"
    config = write(tmp_path / "grid.yaml", grid)
    ran = run("probe", facts, "--model", model, "--config", config, "--steps", 30, "--out", probed, "--json")
    assert ran.document["finished"] == 18  # joined the probe that the options made


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--lengths 12", "Setting ranks is missing. LoRA ranks, such as [1, 2, 4]"),
        ("--ranks 1", "Setting lengths is missing. Target tokens, such as [16, 32]"),
        ("--ranks 1,b --lengths 12", "--ranks '1,b' is not a list of whole numbers such as 1,2,4"),
        ("--ranks 0 --lengths 12", "Setting ranks entry 0 is 0"),
        ("--ranks 33 --lengths 12", "Rank 33 is above 32"),
        ("--ranks 1 --lengths 49", "A length of 49 target tokens was requested, but the data allow 1 to 48"),
        ("--ranks 1 --lengths 11", "the first fact ('1') alone has 12, and facts are never truncated"),
        ("--ranks 1 --lengths 12 --methods sft,dft", "Setting methods entry 1 is 'dft'"),
        ("--ranks 1 --lengths 12 --seeds -1", "Setting seeds entry 0 is -1"),
        ("--ranks 1 --lengths 12 --steps 0", "Setting steps is 0"),
        ("--ranks 1 --lengths 12 --lr nan", "Setting learning_rate is nan"),
        ("--ranks 1 --lengths 12 --batch-size -2", "Setting batch_size is -2"),
        ("--ranks 1 --lengths 12 --placement nope", "no module 'nope' to adapt"),
    ],
)
def test_impossible_grids_are_refused(
    run: Run, model: Path, facts: Path, tmp_path: Path, options: str, sentence: str
) -> None:
    out = tmp_path / "P"
    assert_refused(run("probe", facts, "--model", model, "--out", out, *options.split()), sentence)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ranks: [1]\nlengths: [12]\nlora_alpha: 32\n", "Unknown setting lora_alpha: it would change nothing. Known:"),
        ("ranks: [1]\nlengths: [12]\nmargin: 5\n", "Setting margin is 5: choose nats from 0"),
        ("ranks: [1]\nlengths: [12]\nsteps: -1\n", "Setting steps is -1: choose a whole number from 1 up"),
        (jsonl(*RECORDS), "is not YAML"),
        ("", "has no settings"),
    ],
)
def test_invalid_config_files_are_refused(
    run: Run, model: Path, facts: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    config = write(tmp_path / "grid.yaml", text)
    ran = run("probe", facts, "--model", model, "--out", tmp_path / "P", "--config", config)
    assert_refused(ran, f"{config}", sentence)


def test_a_probe_without_facts_or_a_directory_is_refused(run: Run, facts: Path, tmp_path: Path) -> None:
    assert_refused(run("probe", "--out", tmp_path / "P"), "Missing argument 'DATA'")
    assert_refused(run("probe", facts, "--ranks", 1, "--lengths", 12), "Missing option '--out'")


def test_diverging_cells_are_recorded_and_reported(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    grid = ("--ranks", "1,2", "--lengths", "12,24", "--steps", 20, "--lr", 1e38)
    ran = run("probe", facts, "--model", model, *grid, "--out", tmp_path / "P", "--json")
    assert {"cells": 4, "finished": 0, "failed": 4, "diverged": 4}.items() <= ran.document.items()
    assert "rank 1, length 12, sft, seed 42: diverged. The loss was no longer a finite number at step" in ran.err
    results = Journal(tmp_path / "P").results()
    assert {(result.status, result.loss_final) for result in results} == {("diverged", None)}
    assert all(f"at step {result.steps}" in result.message for result in results)
    assert_refused(run("fit", tmp_path / "P"), "There are no cells to fit")
    ran = run("plan", facts, "--model", model, "--cells", tmp_path / "P")
    assert_refused(ran, "has no finished cell to calibrate a law with")
    assert run("report", tmp_path / "P", "--out", tmp_path / "r.html").code == 0


def test_ctrl_c_keeps_finished_cells_and_rerunning_resumes(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    out = tmp_path / "P"
    grid = ["--ranks", "1,2,3", "--lengths", "12,24,36,48", "--steps", "200", "--out", str(out)]
    command = ["probe", str(facts), "--model", str(model), *grid]
    started = subprocess.Popen(
        [sys.executable, "-m", "memlaw", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("cells/[!.]*.json")):
        assert started.poll() is None, started.communicate()
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    printed, told = started.communicate()
    assert (started.returncode, printed) == (130, "")
    assert told == "Interrupted. Finished cells are saved: rerun the command to resume.\n"
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("[!.]*.json")}
    assert 0 < len(kept) < 12
    assert pyarrow.parquet.read_table(out / "results.parquet").num_rows == len(kept)
    assert run(*command, "--json").document["finished"] == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_failed_cells_are_listed_with_their_reason() -> None:
    results = [sample.cell(1, 16), *(sample.diverged(rank, 32, "the loss was no number") for rank in range(2, 9))]
    lines = list(failure_lines(results))
    assert lines[0] == "  rank 2, length 32, sft, seed 42: diverged. The loss was no number."
    assert len(lines) == SHOWN + 1
    assert lines[-1] == "  ... and 2 more"
    assert list(failure_lines(results[:1])) == []


def test_the_most_bits_per_parameter_of_a_probe_are_printed() -> None:
    sparse = sample.cell(8, 1000, 7 * LN2, loss_memoryless=10 * LN2, certified_tokens=0)
    dense = sample.cell(2, 1000, 9 * LN2, loss_memoryless=10 * LN2, certified_tokens=0)
    assert words(bits_lines([sparse, dense, sample.cell(1, 1000), sample.diverged(1, 16)])) == (
        "At most 1.95 bits are stored per parameter of the adapter (rank 2, length 1,000: 1,000 bits); published: "
        "2 (knowledge, whole models), 3.5 to 3.8 (raw memorisation, whole models)."
    )
    assert list(bits_lines([sample.cell(1, 1000)])) == []


def small_probe(run: Run, facts: Path, model: Path, out: Path, *more: object) -> dict[str, object]:
    return run("probe", facts, "--model", model, *SMALL_GRID, "--out", out, *more, "--json").document


def test_shards_divide_the_cells_and_give_the_same_files_as_one_run(
    run: Run, model: Path, facts: Path, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    parts = [small_probe(run, facts, model, out, "--shard", f"{part}/2") for part in (1, 2)]
    assert [part["finished"] for part in parts] == [2, 2]
    whole = {path.name: path.read_bytes() for path in (small / "cells").iterdir()}
    assert {path.name: path.read_bytes() for path in (out / "cells").iterdir()} == whole


@pytest.mark.slow
def test_isolated_packs_give_the_same_cells(run: Run, model: Path, facts: Path, small: Path, tmp_path: Path) -> None:
    out = tmp_path / "isolated"
    assert small_probe(run, facts, model, out, "--isolate", "--minutes-per-pack", 10)["finished"] == 4
    ours = [(r.cell.key, r.loss_final) for r in Journal(out).results()]
    assert ours == [(r.cell.key, r.loss_final) for r in Journal(small).results()]


def test_a_prefix_cache_changes_no_result(run: Run, model: Path, facts: Path, small: Path, tmp_path: Path) -> None:
    small_probe(run, facts, model, tmp_path / "Q", "--prefix-cache", tmp_path / "cache")
    assert list((tmp_path / "cache").glob("*.safetensors"))
    for path in (small / "cells").iterdir():
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


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--shard", "3/2"), "not of the form 3/20"),
        (("--isolate", "--engine", "ray"), "--isolate and --engine ray exclude each other"),
        (("--ray-address", "here:1"), "add --engine ray"),
        (("--minutes-per-pack", "1"), "add --isolate"),
        (("--isolate", "--minutes-per-pack", "0"), "The time limit of a pack is 0.0 minutes"),
    ],
)
def test_contradictory_options_are_refused_before_any_work(
    run: Run, model: Path, facts: Path, tmp_path: Path, more: tuple[str, ...], sentence: str
) -> None:
    assert_refused(run("probe", facts, "--model", model, *SMALL_GRID, "--out", tmp_path / "P", *more), sentence)
    assert not (tmp_path / "P").exists()


def test_cells_of_other_libraries_or_devices_belong_to_another_run(
    run: Run, model: Path, facts: Path, small_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results of a CPU and a GPU differ in their last bits, so they are different cells."""
    spec = json.loads((small_copy / "probe.json").read_text())["body"]
    assert spec["identity"]["device"] == "cpu"
    assert spec["identity"]["libraries"].startswith("torch ")
    shutil.rmtree(small_copy / "cells")
    monkeypatch.setattr("memlaw.sweep.grid.libraries_used", lambda: "torch 99")
    ran = run("probe", facts, "--model", model, *SMALL_GRID, "--out", small_copy)
    assert_refused(ran, "belongs to another run, which differs in libraries")
