from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from memlaw import durable


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    durable.make_folders(path.parent)
    assert durable.write(path, b"first")
    assert durable.write(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_without_replacing_the_first_writer_wins(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert durable.write(path, b"first", replace=False)
    assert not durable.write(path, b"second", replace=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_what_was_there_stays_when_the_disk_fails(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    durable.write(path, b"first")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    other = tmp_path / "other"
    with pytest.raises(OSError, match="Input/output"):
        durable.write(other if call == "link" else path, b"second", replace=call != "link")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_file_is_nobody_elses_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    durable.write(tmp_path / "file", b"secret", mode=0o600)
    assert seen[0] == 0o600
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_what_a_killed_writer_left_is_known_by_its_name() -> None:
    assert durable.is_temporary(Path("x/.cell.json.0123.tmp"))
    assert durable.final_name(Path("x/.cell.json.0123.tmp")) == "cell.json"
    assert not durable.is_temporary(Path("x/cell.json"))
    assert not durable.is_temporary(Path("x/.hidden"))
