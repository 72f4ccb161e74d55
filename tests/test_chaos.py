"""The scripts of benchmarks/chaos on readers, reports, secrets and ledgers, at a small size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHAOS = Path(__file__).resolve().parents[1] / "benchmarks" / "chaos"

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs a Chromium: apt-get install chromium"
)


def printed_line(script: str, *arguments: object) -> dict[str, Any]:
    """The last JSON line that a script prints."""
    command = [sys.executable, str(CHAOS / script), *map(str, arguments)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    outcome: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "inputs"), [("data", 1500), ("config", 500), ("points", 1500), ("journal", 1500), ("adapter", 150)]
)
def test_damaged_input_is_read_or_refused_without_side_effects(reader: str, inputs: int) -> None:
    outcome = printed_line("fuzz_inputs.py", "--only", reader, "--inputs", inputs, "--seed", 20)
    assert (outcome["failures"], outcome["kinds"]) == (0, {})
    assert min(outcome["accepted"], outcome["refused"]) > 0.02 * inputs


@pytest.mark.slow
def test_no_fact_of_a_ledger_is_lost_by_kills_of_its_writers() -> None:
    outcome = printed_line("ledger_kills.py", "--kills", 30, "--seed", 20)
    assert (outcome["lost_facts"], outcome["half_versions"], outcome["failed_writers"]) == (0, 0, 0)
    assert outcome["acknowledged"] > 5
    assert "leftovers_after_update" not in outcome


@pytest.mark.slow
def test_no_command_leaks_a_planted_secret() -> None:
    outcome = printed_line("secrets_planted.py", "--secrets", 12)
    assert (outcome["found"], outcome["crashed"]) == ({}, [])
    assert outcome["ended"].keys() == {"exit 0", "exit 2"}


@pytest.mark.slow
@pytest.mark.browser
@needs_chromium
def test_no_script_in_a_report_runs() -> None:
    assert printed_line("scripts_in_report.py", "--payloads", 20, "--seed", 20)["live"] == 0
