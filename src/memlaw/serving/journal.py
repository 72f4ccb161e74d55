"""What a server has answered so far, in a file of sealed lines, so that a verification goes on where it ended.

The first line names what was asked of whom; each other line holds the measurements of one fact, and neither its prompt
nor its target. A line that was cut short, or has changed since, does not count: its fact is asked again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from memlaw.core.canonical import to_dict
from memlaw.core.errors import JournalError
from memlaw.core.sealed import seal, unseal
from memlaw.serving.ask import Asked

_ASKED = TypeAdapter(Asked)

FORMAT = "memlaw.answers/1"


class Journal:
    """The answers in one file; without a path, in memory alone. Raises JournalError for a file of something else."""

    def __init__(self, path: Path | None, identity: str) -> None:
        """`identity` names the server, the adapter, the facts and how they are encoded."""
        self.path = path
        self._file: IO[bytes] | None = None
        self._first = b""
        self.answers: dict[tuple[int, int], Asked] = {}
        """(round, row) -> what was said."""
        if path is None:
            return
        content = path.read_bytes() if path.exists() else b""
        lines = content.splitlines(keepends=True)
        if lines:
            self._check(_body(lines[0]), identity)
            for line in lines[1:]:
                self._take(_body(line))
            self._first = b"" if content.endswith(b"\n") else b"\n"
        else:
            self._first = seal({"format": FORMAT, "asked": identity})

    def add(self, turn: int, row: int, asked: Asked) -> None:
        """Keep an answer: it is on disk when this returns. Raises OSError."""
        self.answers[turn, row] = asked
        if self.path is not None:
            self._write(self.path, seal({"turn": turn, "row": row, "asked": to_dict(asked)}))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, path: Path, line: bytes) -> None:
        if self._file is None:
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
        self._file.write(self._first + line)
        self._first = b""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _check(self, header: Any, identity: str) -> None:
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise JournalError(f"{self.path} is not a file of answers that this memlaw wrote. Name another file.")
        if header.get("asked") != identity:
            raise JournalError(
                f"{self.path} holds answers about other facts, or of another server, model or adapter. Mixing them "
                "would give a verdict on neither: name another file."
            )

    def _take(self, body: Any) -> None:
        with suppress(KeyError, TypeError, ValidationError):
            place = body["turn"], body["row"]
            if all(type(number) is int for number in place):
                self.answers[place] = _ASKED.validate_python(body["asked"])


def _body(line: bytes) -> Any:
    try:
        return unseal(line.removesuffix(b"\n") + b"\n")
    except ValueError:
        return None
