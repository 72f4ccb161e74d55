from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers import tiny
from helpers.paths import FIXTURES
from memlaw.cli import app
from memlaw.law import published

SECRETS = [f"hunter-{7919 * number % 10_000:04d}" for number in range(1, 5)]
"""Targets of 11 characters: 11 tokens of the tiny tokenizer, plus the end of sequence."""

LENGTH = 12

OFFICIAL = FIXTURES / "official" / "phonebook" / "qwen" / "PB1000.jsonl"

POINTS = Path(published.__file__).parent / "points.csv"


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


RECORDS = [{"prompt": f"key {number}:", "completion": secret} for number, secret in enumerate(SECRETS)]


def saved_model(directory: Path, **changes: Any) -> Path:
    tiny.model(**changes).save_pretrained(directory)
    tiny.tokenizer().save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document on stdout. json.loads refuses any other output; NaN is refused here."""
        assert self.code == 0, self.err
        document = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert isinstance(document, dict)
        return document


Run = Callable[..., Ran]


def exit_code(*arguments: object) -> int:
    """Run a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["memlaw", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def process(*arguments: object) -> Ran:
    """A command in its own process."""
    ended = subprocess.run([sys.executable, "-m", "memlaw", *map(str, arguments)], capture_output=True, text=True)
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def assert_refused(ran: Ran, *sentences: str) -> None:
    """Exit code 2, nothing on stdout, a sentence on stderr without a traceback or target text."""
    assert ran.code == 2, ran
    assert ran.out == ""
    assert "Error: " in ran.err
    assert "Traceback" not in ran.err
    for sentence in sentences:
        assert sentence in " ".join(ran.err.split()), ran.err
    assert "hunter" not in ran.err


GRID = ("--ranks", "1,2,4", "--lengths", "12,24,48", "--methods", "sft,ot", "--steps", 30)

SMALL_GRID = ("--ranks", "1,2", "--lengths", "12,24", "--steps", 5)
