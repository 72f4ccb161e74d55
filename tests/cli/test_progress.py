from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from helpers.commands import Run
from memlaw.cli import progress
from memlaw.core.stages import tell
from memlaw.model import sampling
from memlaw.training import protection, step_size


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


def test_a_preparation_that_lasts_is_told_once_a_stage_and_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def at(seconds: float, stage: str, done: int, total: int) -> str:
        now[0] = seconds
        tell(stage, done, total)
        out, err = capsys.readouterr()
        assert out == ""
        return err

    with progress.training_bar("rank 2"):
        assert at(4, "tokens", 10, 1000) == ""
        assert at(6, "tokens", 20, 1000) == "rank 2, before the first step: 20 of 1,000 tokens\n"
        assert at(60, "tokens", 900, 1000) == ""
        assert at(67, "tokens", 950, 1000) == "rank 2, before the first step: 950 of 1,000 tokens\n"
        assert at(80, "tokens", 1000, 1000) == ""
        assert at(81, "rows", 0, 128) == "rank 2, before the first step: 0 of 128 rows\n"
        assert at(83, "rates", 0, 12) == ""
    assert at(900, "tokens", 1, 1000) == ""


def test_a_preparation_is_drawn_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.training_bar("rank 2"):
        tell("rows of a text", 12, 128)
    out, err = capsys.readouterr()
    assert "rows of a text" in err
    assert "12/128" in err
    assert out == ""


def test_a_training_says_what_it_prepares(model: Path, facts: Path, tmp_path: Path) -> None:
    """In a process whose cache is empty: three stages, all before the first step."""
    program = "from memlaw.cli import app, progress; progress.SILENT = progress.EVERY = 0; app.main()"
    arguments = ("train", facts, "--model", model, "--rank", 2, "--steps", 3, "--out", tmp_path / "A", "--json")
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, check=True, timeout=300, env={**os.environ, "MEMLAW_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert json.loads(ran.stdout)["steps"] == 3
    places = [ran.stderr.index(stage) for stage in (step_size.STAGE, sampling.STAGE, protection.STAGE, "step 1 of 3")]
    assert places == sorted(places), ran.stderr
