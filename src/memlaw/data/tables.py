"""From the text of a file to rows of named fields; what the fields mean is for `facts` to say.

The format is recognised by content; the suffix of the file decides only where the content is ambiguous.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from memlaw.core.errors import DataError

MAX_LINE = 16 << 20
"""Bytes in one line. No context holds a longer one, so the file is damaged or not a memory set."""

MAX_DEPTH = 64
"""Levels of nested JSON lists and objects."""

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

PLAIN = "plain text"

SUFFIXES = {
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".txt": PLAIN,
    ".md": PLAIN,
}

_CSV_LIMIT = threading.Lock()


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
        return _where(self.unit, number, self.name, self.kind)


def _where(unit: str, number: int, name: str, kind: str) -> str:
    return f"{unit.capitalize()} {number} of {name} (read as {kind})"


def text_table(text: str, name: str, suffix: str, asked: Shape | None) -> Table:
    """The records in `text`, which was read from `name`; `asked` are the fields that the user named, if any.

    Raises DataError, while the rows are read, for the first line that does not have the recognised format.
    """
    kind = _recognise(text, suffix, asked)
    if kind == "JSONL":
        return Table(name, kind, "line", _jsonl_rows(text, name))
    if kind == "JSON":
        return Table(name, kind, "item", _json_rows(text, name))
    if kind == "CSV":
        return Table(name, kind, "line", _csv_rows(text, name, suffix, asked))
    return Table(name, kind, "line", iter([(1, dict(zip(LONG_TARGET, (STRESS_PROMPT, text), strict=True)))]))


def _recognise(text: str, suffix: str, asked: Shape | None) -> str:
    """JSONL, JSON, CSV or plain text: by content where that is unambiguous, else by suffix, else plain text."""
    first = _first_line(text)
    if _holds_object(first):
        return "JSONL"
    if _header_delimiter(first, asked) is not None:
        return "CSV"
    hint = SUFFIXES.get(suffix, PLAIN)
    if hint == PLAIN and first.startswith("[") and _holds_objects(text):
        return "JSON"
    return hint


def _first_line(text: str) -> str:
    """The first line with anything on it, without its indentation."""
    return text.lstrip().partition("\n")[0]


def _loosely_parsed(text: str) -> Any:
    """The JSON value of `text`, or None. Recognition accepts what reading refuses, so that reading can explain it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _holds_object(text: str) -> bool:
    return text.startswith("{") and isinstance(_loosely_parsed(text), dict)


def _holds_objects(text: str) -> bool:
    value = _loosely_parsed(text)
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _header_delimiter(line: str, asked: Shape | None) -> str | None:
    """The delimiter with which `line` is a CSV header that names the fields of a record, if any."""
    for delimiter in ",\t;":
        try:
            cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        if _names_columns(cells, asked):
            return delimiter
    return None


def _names_columns(cells: Sequence[str], asked: Shape | None) -> bool:
    return any(set(shape) <= set(cells) for shape in _column_shapes(asked))


def _column_shapes(asked: Shape | None) -> list[Shape]:
    """The shapes a CSV table can have: a cell cannot hold a chat."""
    return [shape for shape in SHAPES if len(shape) == 2] if asked is None else [asked]


def _jsonl_rows(text: str, name: str) -> Iterator[Row]:
    # Not splitlines(), which also splits at U+2028 and other characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line and not line.isspace():
            where = _where("line", number, name, "JSONL")
            yield number, _object(_parse(line, where), where)


def _json_rows(text: str, name: str) -> Iterator[Row]:
    value = _parse(text, f"{name} (read as JSON)")
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield number, _object(item, _where("item", number, name, "JSON"))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is {json_type(value)}, not an object. A record names its fields, such as "
            '{"prompt": "...", "completion": "..."}.'
        )
    return value


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


def _parse(text: str, where: str) -> Any:
    """Parse one JSON value strictly: no NaN, no duplicate fields, no nesting over MAX_DEPTH. Raises DataError."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_fields)
    except RecursionError:
        _refuse_depth(where)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise DataError(
            f"{where} is not JSON: {error.msg} at {line}column {error.colno}. Write it with a JSON library, one "
            "object per record."
        ) from None
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}.") from None
    if _depth_exceeds(value, MAX_DEPTH):
        _refuse_depth(where)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which JSON does not have (write null, or leave the field out)")


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object names the same field twice, and only one of the two values would be kept")
    return fields


def _refuse_depth(where: str) -> NoReturn:
    raise DataError(
        f"{where} nests lists and objects more than {MAX_DEPTH} deep, and no record needs that. Flatten it."
    )


def _depth_exceeds(value: Any, limit: int) -> bool:
    layer = [value]
    for _ in range(limit + 1):
        containers = [node for node in layer if isinstance(node, (dict, list))]
        layer = [child for node in containers for child in (node.values() if isinstance(node, dict) else node)]
        if not containers:
            return False
    return True


def _csv_rows(text: str, name: str, suffix: str, asked: Shape | None) -> Iterator[Row]:
    delimiter = _header_delimiter(_first_line(text), asked) or ("\t" if suffix == ".tsv" else ",")
    with _long_cells():
        # newline="" keeps line ends inside quoted cells unchanged.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(number, row) for number, row in _numbered(reader, name) if row]
    (first, header), *records = rows
    if not _names_columns(header, asked):
        # The cells are not shown: if the header is missing, they are a prompt and its target.
        known = " or ".join("/".join(shape) for shape in _column_shapes(asked))
        raise DataError(
            f"{_where('line', first, name, 'CSV')} must name the columns, but its {len(header)} cells do not include "
            f"{known}. Add such a header, or name your columns with prompt_field and target_field."
        )
    if len(set(header)) < len(header):
        raise DataError(
            f"The header of {name} (read as CSV) names a column twice, so it is unclear which one is meant. Rename "
            "one of them."
        )
    for number, row in records:
        if len(row) != len(header):
            raise DataError(
                f"{_where('line', number, name, 'CSV')} has {len(row)} cells, but the header has {len(header)}. Quote "
                f"every cell that contains {delimiter!r}, a quote or a line end."
            )
        yield number, dict(zip(header, row, strict=True))


def _numbered(reader: Any, name: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line on which they start (a quoted cell may span several lines)."""
    while True:
        start = reader.line_num + 1
        try:
            yield start, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{_where('line', start, name, 'CSV')} cannot be parsed: {error}. Write it with a CSV library, which "
                "doubles quotes inside a cell."
            ) from None


@contextmanager
def _long_cells() -> Iterator[None]:
    """Raise the csv module's limit of 128 KB per cell, which is global to the process, to that of a line."""
    with _CSV_LIMIT:
        usual = csv.field_size_limit(MAX_LINE)
        try:
            yield
        finally:
            csv.field_size_limit(usual)
