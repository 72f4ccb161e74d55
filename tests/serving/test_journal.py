from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from memlaw.core.errors import JournalError
from memlaw.core.recall import TokenRecall
from memlaw.serving.ask import Asked
from memlaw.serving.journal import Journal

ASKED = Asked(TokenRecall((0.25, 0.5), (True, False), (True, False), rival=(2.0, 0.1), edits=1, mended=True), (1,))


def filled(path: Path, *places: tuple[int, int]) -> bytes:
    journal = Journal(path, "it")
    for place in places:
        journal.add(*place, ASKED)
    journal.close()
    return path.read_bytes()


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path / "a", (0, 0), (1, 7))
    assert Journal(tmp_path / "a", "it").answers == {(0, 0): ASKED, (1, 7): ASKED}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_whatever_is_cut_off_the_others_are_kept_and_the_file_can_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a"
    content = filled(path, (0, 0), (0, 1))
    second = content.rindex(b"\n", 0, len(content) - 1) + 1
    for end in range(second + 1, len(content) - 1, 7):
        path.write_bytes(content[:end])
        assert Journal(path, "it").answers == {(0, 0): ASKED}
        filled(path, (0, 2))
        assert Journal(path, "it").answers == {(0, 0): ASKED, (0, 2): ASKED}


def test_an_answer_without_its_line_end_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(filled(tmp_path / "a", (0, 0), (0, 1))[:-1])
    filled(tmp_path / "a", (0, 2))
    assert Journal(tmp_path / "a", "it").answers == {(0, 0): ASKED, (0, 1): ASKED, (0, 2): ASKED}


def test_a_line_that_has_changed_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(filled(path, (0, 0), (0, 1)).replace(b"0.25", b"0.01", 1))
    assert list(Journal(path, "it").answers) == [(0, 1)]


@pytest.mark.parametrize("content", [b"{}\n", b"a file of something else", b"\n", json.dumps({"body": 1}).encode()])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(JournalError, match="is not a file of answers"):
        Journal(tmp_path / "a", "it")
    assert (tmp_path / "a").read_bytes() == content


def test_answers_of_another_server_are_refused(tmp_path: Path) -> None:
    filled(tmp_path / "a", (0, 0))
    with pytest.raises(JournalError, match="of another server, model or adapter"):
        Journal(tmp_path / "a", "other")
