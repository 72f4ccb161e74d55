"""The scripts of benchmarks/chaos on readers, reports and secrets, at a size for every day."""

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


def line(script: str, *arguments: object) -> dict[str, Any]:
    """The JSON line that a script prints."""
    command = [sys.executable, str(CHAOS / script), *map(str, arguments)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reader", "inputs"), [("data", 1500), ("config", 500), ("points", 1500), ("journal", 1500), ("adapter", 150)]
)
def test_damaged_input_is_read_or_refused_and_nothing_else_happens(reader: str, inputs: int) -> None:
    found = line("fuzz_inputs.py", "--only", reader, "--inputs", inputs, "--seed", 20)
    assert (found["failures"], found["kinds"]) == (0, {})
    assert min(found["accepted"], found["refused"]) > 0.02 * inputs


@pytest.mark.slow
def test_no_command_lets_a_planted_secret_out() -> None:
    found = line("secrets_planted.py", "--secrets", 12)
    assert (found["found"], found["crashed"]) == ({}, [])
    assert found["ended"].keys() == {"exit 0", "exit 2"}


@pytest.mark.slow
@pytest.mark.browser
@needs_chromium
def test_no_script_in_a_report_comes_to_life() -> None:
    assert line("scripts_in_report.py", "--payloads", 20, "--seed", 20)["live"] == 0
