from __future__ import annotations

import os
from pathlib import Path

import pytest

from memlaw.core.errors import JournalError
from memlaw.core.files import write_text


def test_a_file_is_kept_whole_in_folders_that_are_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "law.json"
    write_text(path, "one")
    write_text(path, "two é")
    assert path.read_text(encoding="utf-8") == "two é"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "law.json"
    write_text(path, "one")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match=r"law\.json cannot be written: No space"):
            write_text(path, "two")
    assert path.read_text(encoding="utf-8") == "one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(JournalError, match=r"x cannot be written: .*make room or choose another --out"):
        write_text(path / "x", "two")
