"""Records before they have a meaning: named fields with the place they come from, and the shapes memlaw knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memlaw.core.errors import DataError

MAX_LINE = 16 << 20
"""Bytes in one line. No context holds a longer one, so the file is damaged or not a memory set."""

STRESS_PROMPT = "Please output the content of the vector memory injected into the activations."
"""The prompt of the Long-Context Memorization Stress Test (arXiv 2605.30260), given to every text without a prompt."""

Shape = tuple[str, ...]
"""The fields of a record that hold its content: (prompt, target), or CHAT."""

CHAT: Shape = ("messages",)

SHAREGPT: Shape = ("conversations",)

LONG_TARGET: Shape = ("question", "matching")

INSTRUCTION: Shape = ("instruction", "output")
"""Alpaca's, with an optional `input` between the two."""

SHAPES: tuple[Shape, ...] = (
    ("prompt", "completion"),
    ("query", "target"),
    LONG_TARGET,
    INSTRUCTION,
    CHAT,
    SHAREGPT,
)

Row = tuple[int, Mapping[str, Any]]
"""The number of a record and its fields."""


@dataclass(frozen=True)
class Table:
    """The records of one source, numbered from 1 as a person would count them."""

    name: str
    kind: str
    """The recognised format, for messages."""
    unit: str
    """What the numbers count: line, item or row."""
    rows: Iterator[Row]
    """Can be read once; each row is checked when it is reached."""
    warnings: tuple[str, ...] = ()

    def at(self, number: int) -> str:
        """The start of a message about one record."""
        return where_in(self.unit, number, self.name, self.kind)


def where_in(unit: str, number: int, name: str, kind: str) -> str:
    """The start of a message about one record of a source."""
    return f"{unit.capitalize()} {number} of {name} (read as {kind})"


def numbers(records: Sequence[int], most: int = 8) -> str:
    """The numbers of records, for messages."""
    shown = ", ".join(str(number) for number in records[:most])
    return f"{shown}, ..." if len(records) > most else shown


def refuse_surrogates(value: str, what: str) -> None:
    """Refuse a text that cannot be written as UTF-8."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} has half of a surrogate pair at character {error.start}, which is not a character and cannot be "
            "written as UTF-8. The text was cut or decoded wrongly: export it again from its source."
        ) from None


def json_type(value: Any) -> str:
    """The type of a JSON value, in JSON's terms."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
