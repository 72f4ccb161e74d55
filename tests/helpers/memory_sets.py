from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.slow_data import CHAT_TEMPLATE, byte_level
from memlaw.core.errors import DataError
from memlaw.core.facts import MemorySet
from memlaw.data import read

SECRET = "hunter2-hunter2"

PAIRS = [("Ada:", "007"), ("Bob:", ' two, "quoted"\nlines ')]

TOKENIZER = byte_level()

WITH_BOS = byte_level(bos=True, chat_template=CHAT_TEMPLATE)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def jsonl(records: list[Any], *, ensure_ascii: bool = False) -> str:
    return "".join(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records)


def records(prompt: str = "prompt", target: str = "completion") -> list[dict[str, str]]:
    return [{prompt: q, target: a} for q, a in PAIRS]


def table(delimiter: str = ",", header: tuple[str, str] = ("prompt", "completion")) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows([header, *PAIRS])
    return buffer.getvalue()


def pairs(memory_set: MemorySet) -> list[tuple[str, str]]:
    return [(fact.prompt, fact.target) for fact in memory_set.facts]


def refused(source: Path | str, **options: Any) -> str:
    """The message with which `source` is refused; it never repeats a target."""
    with pytest.raises(DataError) as caught:
        read(source, **options)
    assert SECRET not in str(caught.value)
    return str(caught.value)


GOOD = '{"prompt": "a", "completion": "b"}\n'

TURNS = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "Code?"},
    {"role": "assistant", "content": SECRET},
]


def chat(tmp_path: Path, *chats: Any) -> Path:
    return write(tmp_path / "chat.jsonl", jsonl([{"messages": turns} for turns in chats]))
