"""The demo is the promise of the README: everything once, on the bundled base, through a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # minutes on a quiet machine, but not every one is


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "memlaw", "demo", "--out", str(out), "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return out, json.loads(process.stdout)


def test_the_better_form_explains_the_cells_and_the_others_stand_beside_it(ran: tuple[Path, dict[str, Any]]) -> None:
    _, document = ran
    assert set(document["fits"]) == {"paper", "power", "log", "bounded", "memory"}
    better = document["fits"][document["better"]]
    assert better["status"] == "ok"
    assert better["r2"] >= 0.99


def test_every_cell_of_both_probes_is_finished(ran: tuple[Path, dict[str, Any]]) -> None:
    out, document = ran
    assert (document["cells"], document["finished"], document["failed"]) == (33, 33, 0)
    assert pq.read_table(out / "random" / "results.parquet").num_rows == 25
    book = pq.read_table(out / "phonebook" / "results.parquet").to_pylist()
    assert len({row["rank"] for row in book}) == 4
    assert {row["length"] for row in book} == {330, 1100}


def test_the_planned_rank_recalls_every_phone_number(ran: tuple[Path, dict[str, Any]]) -> None:
    _, document = ran
    planned = document["plan"]["rank"]
    assert planned["low"] <= planned["value"] <= planned["high"]
    assert document["plan"]["target"] == {"share": 1.0, "loss": None}
    assert document["plan"]["loss_needed"]["why"].endswith("learned from 8 cells.")
    assert not document["plan"]["law"]["borrowed"]
    assert document["train"]["rank"] == planned["value"]
    assert document["train"]["recalled"]
    recalled = document["recall"]
    assert (recalled["records"], recalled["acc_em"], recalled["certified"]) == (60, 1.0, 60)


def test_the_report_is_one_file_that_says_so_without_the_numbers_stored(ran: tuple[Path, dict[str, Any]]) -> None:
    out, document = ran
    page = Path(document["report"]).read_text(encoding="utf-8")
    assert document["report"] == str(out / "report.html")
    assert "60" in page
    assert "9100672710" not in page
