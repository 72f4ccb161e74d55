"""Tables as spreadsheets and people write them; what a header means is judged by Python's own csv module."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.memory_sets import PAIRS, SECRET, pairs, refused, table, write
from memlaw.data import read

MARK = "\ufeff"

READ: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "a space after the delimiter": ('prompt, completion\n"Ada:", " 007"\n', [("Ada:", " 007")]),
    "spaces around names": ("prompt , completion \nAda:, 007\n", [("Ada:", "007")]),
    "a space before the delimiter": ("prompt ,completion \nAda:, 007\n", [("Ada:", " 007")]),
    "capitals": ("Prompt,COMPLETION\nAda:,007\n", [("Ada:", "007")]),
    "quoted names": ('"Query";"Target"\nAda:;007\n', [("Ada:", "007")]),
    "sep": ("sep=;\nprompt;completion\nAda:;007\n", [("Ada:", "007")]),
    "sep in quotes and capitals": ('"SEP=|"\r\nPrompt|Completion\r\nAda:|0,7;\r\n', [("Ada:", "0,7;")]),
    "alpaca": ("Instruction,Input,Output\nCode,of A,1\nName,,2\n", [("Code\nof A", "1"), ("Name", "2")]),
}


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_a_header_is_known_by_its_names(tmp_path: Path, case: str, suffix: str) -> None:
    content, expected = READ[case]
    assert pairs(read(write(tmp_path / f"a.{suffix}", content))) == expected


def test_spaces_that_are_dropped_are_told(tmp_path: Path) -> None:
    spaced = read(write(tmp_path / "a.csv", READ["a space after the delimiter"][0]))
    assert "Quote the texts that begin with a space" in spaced.warnings[0]
    assert read(write(tmp_path / "b.csv", READ["a space before the delimiter"][0])).warnings == ()


@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize("second", ["prompt,completion", '"Prompt", "Completion"'])
def test_the_header_of_a_joined_file_is_no_record(tmp_path: Path, mark: str, second: str) -> None:
    memory_set = read(write(tmp_path / "a.csv", table() + f"{mark}{second}\nEve:,12\n"))
    assert pairs(memory_set) == [*PAIRS, ("Eve:", "12")]
    assert "left out there: lines 5." in memory_set.warnings[0]
    assert memory_set.facts[-1].line == 6


def test_joined_jsonl_files_keep_their_marks_out_of_the_facts(tmp_path: Path) -> None:
    line = '{"prompt": "%s", "completion": "b"}\n'
    path = write(tmp_path / "a.jsonl", MARK + line % "a" + MARK + line % "c")
    assert pairs(read(path)) == [("a", "b"), ("c", "b")]


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (f"prompt,completion\na,{SECRET}\ncompletion,prompt\n", ["Line 3", "another header"]),
        (f"prompt,completion\na,{SECRET}\nquery,target\n", ["Line 3", "another header"]),
        (f"prompt,completion\na,{SECRET}\n{MARK}b,c\n", ["Line 3", "byte-order mark"]),
        ("sep=;\nprompt;completion\na;b\nc\n", ["Line 4", "has 1 cells", "';'"]),
        ("Prompt,prompt,completion\na,b,c\nd,e\n", ["Line 3", "has 2 cells"]),
        ("Prompt,PROMPT,Completion\na,b,c\n", ["names a column twice"]),
        (f"Question,Answer\na,{SECRET}\n", ["found: 'Question', 'Answer'", "--prompt-field"]),
        (f"question,{SECRET}\na,b\n", ["found: 'question', 1 not shown"]),
        ("id,messages\n1,[]\n", ["Chats ('messages') do not fit into cells", "JSONL"]),
    ],
)
def test_a_table_that_cannot_be_read_names_what_was_found(tmp_path: Path, content: str, fragments: list[str]) -> None:
    message = refused(write(tmp_path / "a.csv", content))
    for fragment in fragments:
        assert fragment in message


def test_the_remedy_for_an_unknown_header_works(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "Question,Answer\nAda:,007\n")
    assert pairs(read(path, prompt_field="question", target_field="answer")) == [("Ada:", "007")]
