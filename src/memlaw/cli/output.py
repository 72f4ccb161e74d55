"""How commands print: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def quiet_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def emit(as_json: bool, document: Mapping[str, Any], lines: Iterable[str]) -> None:
    print(json.dumps(document, allow_nan=False) if as_json else "\n".join(lines), flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


SHOWN = 5
"""Records, facts or failed cells listed before the rest is only counted."""

WIDTH = 96
"""Columns of a paragraph."""


def aligned_rows(rows: Mapping[str, str]) -> Iterator[str]:
    """Two columns, names and texts."""
    width = max(map(len, rows), default=0) + 2
    for name, text in rows.items():
        yield from wrapped(text, f"  {name:<{width}}", " " * (width + 2))


def paragraph(text: str, *, indent: int = 0) -> Sequence[str]:
    return wrapped(text, " " * indent, " " * indent)


def python_call(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """A Python call to paste."""
    yield from wrapped(f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})", "", "    ")


def shell_command(line: str) -> Iterator[str]:
    """A shell command to paste, broken before options where it is too wide."""
    parts: list[str] = []
    for word in map(shlex.quote, shlex.split(line)):
        if word.startswith("--") or not parts:
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    row = parts[0]
    for part in parts[1:]:
        if len(f"{row} {part} \\") > WIDTH:
            yield f"{row} \\"
            row = "   "
        row += f" {part}"
    yield row


def human_bytes(size: int) -> str:
    """Bytes in decimal units."""
    return f"{size / 1e6:,.2f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def wrapped(text: str, first: str, then: str) -> Sequence[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=then, break_long_words=False, break_on_hyphens=False
    )


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(name: str) -> str:
    """`name`, escaped if it could control the terminal: ids come from files."""
    return name if name.isprintable() else ascii(name)
