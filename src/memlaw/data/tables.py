"""From the text of a file to rows of named fields; what the fields mean is for `facts` to say.

The format is recognised by content; the suffix of the file decides only where the content is ambiguous.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from memlaw.core.errors import DataError
from memlaw.data.delimited import delimited_rows, has_header
from memlaw.data.rows import LONG_TARGET, STRESS_PROMPT, Row, Shape, Table, json_type, where_in

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


MAX_DEPTH = 64
"""Levels of nested JSON lists and objects."""


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
        rows, warnings = delimited_rows(text, name, tabs=suffix == ".tsv", asked=asked)
        return Table(name, kind, "line", iter(rows), warnings)
    return Table(name, kind, "line", iter([(1, dict(zip(LONG_TARGET, (STRESS_PROMPT, text), strict=True)))]))


def _recognise(text: str, suffix: str, asked: Shape | None) -> str:
    """JSONL, JSON, CSV or plain text: by content where that is unambiguous, else by suffix, else plain text."""
    first = _first_line(text)
    if _holds_object(first):
        return "JSONL"
    if has_header(text, asked):
        return "CSV"
    hint = SUFFIXES.get(suffix, PLAIN)
    # A list, or one object over several lines, is JSON also where the file is named .jsonl.
    if hint == PLAIN and first.startswith("["):
        return "JSON" if _holds_objects(text) else hint
    if hint == "JSONL" and first.startswith(("[", "{")):
        return "JSON" if isinstance(_loosely_parsed(text), dict) or _holds_objects(text) else hint
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


def _jsonl_rows(text: str, name: str) -> Iterator[Row]:
    # Not splitlines(), which also splits at U+2028 and other characters that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removeprefix("\ufeff")  # the mark of a second file that was joined to the first
        if line and not line.isspace():
            where = where_in("line", number, name, "JSONL")
            yield number, _object(_parse(line, where), where)


def _json_rows(text: str, name: str) -> Iterator[Row]:
    value = _parse(text, f"{name} (read as JSON)")
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        yield number, _object(item, where_in("item", number, name, "JSON"))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is {json_type(value)}, not an object. A record names its fields, such as "
            '{"prompt": "...", "completion": "..."}.'
        )
    return value


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
