from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from helpers.commands import Run
from memlaw.cli import progress


def test_a_terminal_shows_bars_and_a_log_does_not(
    run: Run, model: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=120, color_system=None)
    )
    run("train", facts, "--model", model, "--rank", 2, "--steps", 60, "--out", tmp_path / "A")
    assert "rank 2" in screen.getvalue()
    assert "/60" in screen.getvalue()
    assert "ordered" in screen.getvalue()
    assert "stubborn" in screen.getvalue()
    run(
        "probe", facts, "--model", model, "--ranks", "1,2", "--lengths", "12,24", "--steps", 60, "--out", tmp_path / "P"
    )
    assert "cells" in screen.getvalue()
    assert "pack 2/2" in screen.getvalue()
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=screen, width=120))
    screen.truncate(0)
    run("train", facts, "--model", model, "--rank", 2, "--steps", 60, "--out", tmp_path / "A")
    assert screen.getvalue().strip("\0") == ""


LINE = r"(?m)^{}step \d+ of 60: loss \d+\.\d{{3}}, \d+\.\d% ordered, at most \d+ s left{}$"


def without_a_terminal(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A real process whose output goes to a pipe, and whose minutes are short."""
    program = "from memlaw.cli import app, progress; progress.EVERY = 0.02; app.main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def test_without_a_terminal_a_line_comes_every_minute_and_json_stays_json(
    model: Path, facts: Path, tmp_path: Path
) -> None:
    train = ("train", facts, "--model", model, "--rank", 2, "--steps", 60, "--out", tmp_path / "A", "--json")
    ran = without_a_terminal(*train)
    assert json.loads(ran.stdout)["steps"] <= 60
    assert re.search(LINE.format("rank 2, ", ""), ran.stderr), ran.stderr
    grid = ("--ranks", "1,2", "--lengths", "12,24", "--steps", 60)
    ran = without_a_terminal("probe", facts, "--model", model, *grid, "--out", tmp_path / "P", "--json")
    assert json.loads(ran.stdout)["finished"] == 4
    before = r"\d of 4 cells, pack \d of 2, "
    assert re.search(LINE.format(before, " in this pack"), ran.stderr), ran.stderr


def test_judged_tokens_are_counted_on_a_terminal_and_only_if_there_are_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.judging_bar():
        pass
    assert "tokens" not in capsys.readouterr().err
    with progress.judging_bar() as show:
        show(1024, 4096)
    out, err = capsys.readouterr()
    assert "tokens judged by reach" in err
    assert "1024/4096" in err
    assert out == ""
