from __future__ import annotations

import io
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
