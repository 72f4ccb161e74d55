"""The command line as users see it: what it prints and writes, and one sentence for every bad input."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import GRID, POINTS, SECRETS, Ran, Run, assert_refused, process
from memlaw import __version__
from memlaw.adapter import peft
from memlaw.cli.app import COMMANDS, load_command, wait_passively

IN_GROUPS = [f"{group} {name}" for group in ("journal", "ledger") for name in load_command(group).commands]


@pytest.mark.parametrize("name", [*sorted(set(COMMANDS) - {"journal", "ledger"}), *IN_GROUPS])
def test_every_command_explains_itself_and_takes_json(run: Run, name: str) -> None:
    ran = run(*name.split(), "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: memlaw {name} ")
    assert "--json" in ran.out


def test_directories_of_other_content_are_never_overwritten(
    run: Run, model: Path, facts: Path, probed: Path, adapter: Path, tmp_path: Path
) -> None:
    def snapshot(directory: Path) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}

    before = snapshot(probed), snapshot(adapter)
    train = ("train", facts, "--model", model, "--rank", 2, "--steps", 2, "--out")
    assert_refused(run(*train, probed), f"The directory {probed} belongs to something else")
    assert_refused(run(*train, facts), "is a file; an adapter is a directory. Choose another --out")
    assert_refused(run(*train, facts / "A"), f"{facts}: File exists")
    probe = ("probe", facts, "--model", model, "--ranks", 1, "--lengths", 12)
    assert_refused(run(*probe, "--out", adapter), "is not a probe directory", "Nothing was written there")
    assert_refused(run(*probe, "--steps", 31, "--out", probed), "belongs to another run", "steps (there 30, here 31)")
    assert_refused(run(*probe, "--out", facts), "Not a directory")
    assert (snapshot(probed), snapshot(adapter)) == before


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_an_error_and_saved_results_survive(
    run: Run, model: Path, facts: Path, adapter: Path, probed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, copy, page = tmp_path / "A", tmp_path / "P", tmp_path / "r.html"
    shutil.copytree(adapter, ours)
    shutil.copytree(probed, copy)
    weights = (ours / peft.WEIGHTS).read_bytes()
    lost = sorted((copy / "cells").iterdir())[:3]
    for path in lost:
        path.unlink()
    kept = {path.name for path in (copy / "cells").iterdir()}
    again = ("probe", facts, "--model", model, *GRID, "--out", copy)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _full)
        assert_refused(run("train", facts, "--model", model, "--rank", 2, "--steps", 2, "--out", ours), "No space left")
        assert_refused(run(*again), "Cannot write", "No space left on device", "finished cells are skipped")
        assert {path.name for path in (copy / "cells").iterdir()} == kept
        patch.setattr(Path, "write_text", _full)
        assert_refused(run("fit", POINTS, "--out", tmp_path / "law.json"), "law.json cannot be written: No space left")
    assert (ours / peft.WEIGHTS).read_bytes() == weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "P"]
    assert run(*again, "--json").document["finished"] == 18
    assert all(path.exists() for path in lost)
    assert not page.exists()


def test_version_and_help_need_no_command() -> None:
    assert process("--version") == Ran(0, f"memlaw {__version__}\n", "")
    shown = process("--help")
    assert shown.code == 0
    commands = [line.split()[0] for line in shown.out.partition("Commands:\n")[2].splitlines()]
    assert commands == [
        "demo", "check", "plan", "laws", "train", "recall", "verify", "probe", "fit", "ledger", "export", "report",
        "journal",
    ]  # fmt: skip
    bare = process()
    assert (bare.code, bare.out) == (2, "")
    assert "Commands:" in bare.err
    assert_refused(process("remember"), "No such command 'remember'")


def test_version_and_help_load_no_settings() -> None:
    """They took a second while they did: pydantic builds a validator for each class of settings."""
    program = """
import contextlib, sys
from memlaw.cli.app import main
for sys.argv in (["memlaw", "--help"], ["memlaw", "--version"]):
    with contextlib.suppress(SystemExit):
        main()
assert "memlaw.cli.app" in sys.modules
assert not {"pydantic", "memlaw.core.config"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_mistyped_command_gets_a_suggestion(run: Run) -> None:
    assert_refused(run("tran"), "No such command 'tran'. Did you mean 'train'?")


def test_stdout_is_the_document_and_stderr_is_silent_in_a_real_process(model: Path, facts: Path, adapter: Path) -> None:
    ran = process("recall", facts, "--model", model, "--adapter", adapter, "--decode", "--json")
    assert ran.document["records"] == 4
    assert ran.err == ""
    ran = process("fit", POINTS, "--json")
    assert ran.document["n"] == 70
    assert ran.err == ""
    assert_refused(process("fit", facts), "has no column rank")


@pytest.mark.parametrize(
    "arguments", [("fit", POINTS), ("recall", "task:phonebook:tokens=300", "--decode")], ids=["fit", "recall"]
)
def test_a_closed_pipe_is_no_error(arguments: tuple[object, ...]) -> None:
    command = [sys.executable, "-m", "memlaw", *map(str, arguments), "--json"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    started.stdout.close()
    _, told = started.communicate()
    assert told == ""


def test_targets_appear_nowhere_but_in_the_adapter(
    run: Run, model: Path, facts: Path, adapter: Path, probed: Path, tmp_path: Path
) -> None:
    room = tmp_path / "room"
    law, page = room / "law.json", room / "report.html"
    shutil.copytree(probed, room / "probe")
    base = ("--model", model)
    commands = [
        ("train", facts, *base, "--rank", 16, "--out", room / "A"),
        ("train", facts, *base, "--rank", 1, "--steps", 2, "--placement", "mlp@1", "--out", room / "B"),
        ("recall", facts, *base, "--adapter", room / "A", "--decode", "--out", room / "recall.json"),
        ("recall", facts, *base, "--decode"),
        ("check", facts, *base, "--adapter", room / "A", "--rank", 1),
        ("probe", facts, *base, "--ranks", 1, "--lengths", "12,20", "--lr", 1e38, "--steps", 9, "--out", room / "d"),
        ("fit", room / "probe", "--method", "sft", "--out", law),
        ("plan", facts, *base, "--law", law),
        ("report", room, "--out", page),
    ]
    said = ""
    for command in commands:
        for form in ((), ("--json",)):
            ran = run(*command, *form)
            assert ran.code == 0, ran.err
            said += ran.out + ran.err
    assert len(said) > 1000
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"law.json", "recall.json", "report.html", "probe.json", "README.md"} <= {path.name for path in written}
    for secret in (*SECRETS, "hunter"):
        assert secret not in said
        assert not [path for path in written if secret in path.name]
        assert not [path.name for path in written if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("chosen", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"KMP_BLOCKTIME": "5"}, None)]
)
def test_threads_wait_without_spinning_unless_the_user_chose_otherwise(
    monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], policy: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    wait_passively()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    os.environ.pop("OMP_WAIT_POLICY", None)
