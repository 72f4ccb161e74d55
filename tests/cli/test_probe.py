from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from helpers.commands import RECORDS, Run, assert_refused, jsonl, write
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
        ("--lengths 12", "A probe needs ranks, such as ranks: [16, 32]"),
        ("--ranks 1", "A probe needs lengths"),
        ("--ranks 1,b --lengths 12", "--ranks '1,b' is not a list of whole numbers such as 1,2,4"),
        ("--ranks 0 --lengths 12", "Setting ranks entry 0 is 0"),
        ("--ranks 33 --lengths 12", "Rank 33 is above 32"),
        ("--ranks 1 --lengths 49", "A length of 49 target tokens was asked for, but the data have 1 to 48"),
        ("--ranks 1 --lengths 11", "the first fact ('1') alone has 12, and facts are never cut"),
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
def test_a_config_that_is_none_is_refused(
    run: Run, model: Path, facts: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    config = write(tmp_path / "grid.yaml", text)
    ran = run("probe", facts, "--model", model, "--out", tmp_path / "P", "--config", config)
    assert_refused(ran, f"{config}", sentence)


def test_diverging_cells_are_recorded_and_told(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
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


def test_ctrl_c_keeps_every_finished_cell_and_the_same_command_goes_on(
    run: Run, model: Path, facts: Path, tmp_path: Path
) -> None:
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
    assert told == "Interrupted. Every finished cell is kept: the same command goes on from there.\n"
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("[!.]*.json")}
    assert 0 < len(kept) < 12
    assert pyarrow.parquet.read_table(out / "results.parquet").num_rows == len(kept)
    assert run(*command, "--json").document["finished"] == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
