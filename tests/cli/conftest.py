"""What the tests of the command line share, trained once for all of them: leave these directories as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.commands import GRID, RECORDS, SMALL_GRID, Ran, Run, exit_code, jsonl, saved_model, write


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `save_pretrained` leaves it."""
    return saved_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("facts") / "facts.jsonl", jsonl(*RECORDS))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process and returns what it printed."""

    def start(*arguments: object) -> Ran:
        code = exit_code(*arguments)
        return Ran(code, *capsys.readouterr())

    return start


@pytest.fixture(scope="session")
def adapter(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until every fact of `facts` is recalled."""
    out = tmp_path_factory.mktemp("adapter") / "A"
    until = ("--method", "ot", "--until", "recalled")
    assert exit_code("train", facts, "--model", model, "--rank", 16, *until, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def probed(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of two methods: 18 cells."""
    out = tmp_path_factory.mktemp("probe") / "P"
    assert exit_code("probe", facts, "--model", model, *GRID, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def single(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of one method: 9 cells."""
    out = tmp_path_factory.mktemp("single") / "P"
    grid = ("--ranks", "1,2,4", "--lengths", "12,24,48", "--steps", 30)
    assert exit_code("probe", facts, "--model", model, *grid, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def small(model: Path, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of 4 cells."""
    out = tmp_path_factory.mktemp("small") / "P"
    assert exit_code("probe", facts, "--model", model, *SMALL_GRID, "--out", out) == 0
    return out


@pytest.fixture
def small_copy(small: Path, tmp_path: Path) -> Path:
    """A probe of 4 cells to damage."""
    return shutil.copytree(small, tmp_path / "P")
