"""benchmarks/gpu at a small size on the CPU, and what becomes of a section that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

SECTIONS = ("environment", "kernels", "head", "qwen3-8b", "llama-3.1-8b", "eviction", "bundled")

TROUBLE = """
import os, signal, time

def crashes(section):
    section.case("first", lambda: {"value": 1.0})
    os.kill(os.getpid(), signal.SIGKILL)

def hangs(section):
    time.sleep(600)

def raises(section):
    section.case("raises", lambda: {}["missing"])
    section.case("infinite", lambda: {"inner": {"value": float("inf"), "other": 2.0}})
    section.case("wrong", lambda: {"value": 3.0, "ok": False})
    section.case("late", lambda: {}, takes=1e9)
    section.case("right", lambda: {"value": 4.0})
    raise ValueError("outside of its cases")
"""


def small(out: Path, *sections: str) -> dict[str, Any]:
    """The JSON document of a small run, which is also the last line it prints."""
    command = [str(BENCHMARKS / "gpu" / "run.sh"), "--small", "--only", ",".join(sections), "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == document
    assert done.returncode == bool(document["failed"])
    return document


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small(tmp_path_factory.mktemp("gpu") / "results.json", *SECTIONS)


def numbers(value: Any) -> Iterator[Any]:
    """All leaves that should be numbers: a number that is not finite is written as null."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from () if name == "versions" or name == "cuda" else numbers(one)
    elif isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif not isinstance(value, str):
        yield value


def test_every_section_runs_and_none_fails(document: dict[str, Any]) -> None:
    sections = document["sections"]
    assert list(sections) == list(SECTIONS)
    assert {name: (one["failed"], one["skipped"]) for name, one in sections.items()} == dict.fromkeys(
        SECTIONS, ({}, [])
    )
    for name, one in sections.items():
        found = list(numbers(one["cases"]))
        assert len(found) > 4, name
        assert None not in found, name


def test_both_sides_train_the_same(document: dict[str, Any]) -> None:
    for model in ("qwen3-8b", "llama-3.1-8b"):
        cases = document["sections"][model]["cases"]
        compared = [case for name, case in cases.items() if "K=" in name]
        assert len(compared) == 4
        for case in compared:
            assert case["loss_difference"] < 1e-5
            assert case["ratio"] > 0 < case["floor_ms"]


def test_the_facts_are_certified(document: dict[str, Any]) -> None:
    recalled = document["sections"]["bundled"]["cases"]["recall float32"]
    assert (recalled["records"], recalled["certified"], recalled["acc_em"]) == (12, 12, 1.0)


@pytest.mark.slow
def test_compiled_stacks_and_profiles(tmp_path: Path) -> None:
    document = small(tmp_path / "results.json", "closer")
    assert document["failed"] == []
    profile = document["sections"]["closer"]["cases"]["profile, 200 tokens, stack 16"]
    assert 0 < max(profile["most"].values()) < profile["busy_ms"]


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """apart(function, seconds): what a section of TROUBLE leaves that ran in a process of its own."""
    (tmp_path / "trouble.py").write_text(TROUBLE)
    paths = [str(tmp_path), str(BENCHMARKS), str(BENCHMARKS.parent / "src")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu.run import Planned, read, run_apart

    def run(function: str, seconds: float) -> dict[str, Any]:
        out = tmp_path / "out.json"
        run_apart(Planned("trouble", seconds, function), out, small=True, seconds=seconds)
        return read(out)

    return run


def test_a_section_that_crashes_leaves_what_it_had_found(apart: Any) -> None:
    found = apart("crashes", 60)
    assert found["cases"]["first"]["value"] == 1.0
    assert found["failed"]["process"]["error"] == "ended with status -9"


def test_a_section_that_hangs_is_stopped(apart: Any) -> None:
    assert apart("hangs", 2)["failed"]["process"]["error"] == "stopped after 2 seconds"


def test_a_case_that_fails_does_not_end_its_section(apart: Any) -> None:
    found = apart("raises", 60)
    assert found["failed"].keys() == {"raises", "infinite", "wrong", "section"}
    assert found["failed"]["raises"]["error"] == "KeyError: 'missing'"
    assert "not finite: infinite.inner.value" in found["failed"]["infinite"]["error"]
    assert found["cases"]["infinite"]["inner"] == {"value": None, "other": 2.0}
    assert found["failed"]["section"]["error"] == "ValueError: outside of its cases"
    assert found["skipped"] == ["late"]
    assert found["cases"]["right"]["value"] == 4.0
