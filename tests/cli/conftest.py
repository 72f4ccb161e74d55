from __future__ import annotations

from pathlib import Path

import pytest

from helpers.commands import GRID, RECORDS, Ran, Run, exit_code, jsonl, saved_model, write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `save_pretrained` leaves it."""
    return saved_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("facts") / "facts.jsonl", jsonl(*RECORDS))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process, with what it printed."""

    def start(*arguments: object) -> Ran:
        code = exit_code(*arguments)
        return Ran(code, *capsys.readouterr())

    return start


@pytest.fixture(scope="module")
def adapter(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until every fact of `facts` is recalled."""
    out = tmp_path_factory.mktemp("adapter") / "A"
    until = ("--method", "ot", "--until", "recalled")
    assert exit_code("train", facts, "--model", model, "--rank", 16, *until, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def probed(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of both methods: 18 cells."""
    out = tmp_path_factory.mktemp("probe") / "P"
    assert exit_code("probe", facts, "--model", model, *GRID, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def single(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of one method: 9 cells."""
    out = tmp_path_factory.mktemp("single") / "P"
    grid = ("--ranks", "1,2,4", "--lengths", "12,24,48", "--steps", 30)
    assert exit_code("probe", facts, "--model", model, *grid, "--out", out) == 0
    return out
