"""Tables of delimited text (CSV, TSV) to rows of named fields."""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from memlaw.core.errors import DataError
from memlaw.data.rows import MAX_LINE, SHAPES, Row, Shape, numbers, where_in

_CSV_LIMIT = threading.Lock()

_MARK = "\ufeff"
"""The byte-order mark, which starts a file, and so the second of two files that were joined."""

_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?\r?\n', re.IGNORECASE)
"""The first line with which spreadsheets name the delimiter."""

_BESIDE = ("id", "input", "system", "history")
"""Columns that mean something beside those of a shape."""

_COMMON = """
id name title text content prompt completion query target question answer matching instruction input output response
reply messages conversations key value ask say q a source label context chosen rejected
"""
"""Names of columns that can be shown: other cells of a first line may be a fact."""


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    spaced: bool = False
    """Whether spaces after a delimiter belong to it."""

    def reader(self, lines: Any) -> Any:
        return csv.reader(lines, delimiter=self.delimiter, strict=True, skipinitialspace=self.spaced)

    def cells(self, line: str) -> list[str]:
        """The cells of one line; none where it is not a line of this dialect."""
        try:
            return next(self.reader([line]), [])
        except csv.Error:
            return []


def has_header(text: str, asked: Shape | None) -> bool:
    """Whether a text begins like a table whose columns are the fields of a record."""
    return _dialect(text, asked) is not None


def delimited_rows(text: str, name: str, *, tabs: bool, asked: Shape | None) -> tuple[list[Row], tuple[str, ...]]:
    """The records of a table, and warnings about it; `tabs` is the delimiter to expect where the header tells none.

    Names of columns may differ from the known ones in case and in white space around them. A header that is repeated
    (two tables joined to one file) is left out. Raises DataError.
    """
    separator = _SEPARATOR.match(text)
    dialect = _dialect(text, asked) or _Dialect(separator[1] if separator else "\t" if tabs else ",")
    with _long_cells():
        # newline="" keeps line ends inside quoted cells unchanged.
        reader = dialect.reader(io.StringIO(text[separator.end() :] if separator else text, newline=""))
        rows = [(number, row) for number, row in _numbered(reader, name, 1 if separator else 0) if row]
    (first, header), *records = rows
    columns = _columns(header, asked)
    if columns is None:
        raise _unknown_header(where_in("line", first, name, "CSV"), header, asked)
    if len(set(columns)) < len(columns):
        raise DataError(
            f"The header of {name} (read as CSV) names a column twice, so it is unclear which one is meant. Rename "
            "one of them."
        )
    named: list[Row] = []
    repeated: list[int] = []
    for number, row in records:
        if _columns(row, asked) == columns:
            repeated.append(number)
            continue
        _check_record(row, columns, where_in("line", number, name, "CSV"), dialect, asked)
        named.append((number, dict(zip(columns, row, strict=True))))
    return named, tuple(_warnings(dialect, repeated))


def _warnings(dialect: _Dialect, repeated: Sequence[int]) -> Iterator[str]:
    if dialect.spaced:
        yield (
            "The header has a space after a delimiter, so spaces after delimiters are not part of any text. Quote the "
            'texts that begin with a space, as in a, " b".'
        )
    if repeated:
        yield f"The header is repeated, as in joined files, and was left out there: lines {numbers(repeated)}."


def _dialect(text: str, asked: Shape | None) -> _Dialect | None:
    """The dialect in which the first line is a header that names the fields of a record, if any."""
    separator = _SEPARATOR.match(text)
    line = text[separator.end() if separator else 0 :].lstrip().partition("\n")[0]
    for delimiter in separator[1] if separator else ",\t;":
        for dialect in (_Dialect(delimiter), _Dialect(delimiter, spaced=True)):
            cells = dialect.cells(line)
            spaces = any(cell.startswith(" ") for cell in cells[1:]) and not _names_columns(cells, asked)
            if not spaces and _columns(cells, asked) is not None:
                return dialect
    return None


def _columns(cells: Sequence[str], asked: Shape | None) -> list[str] | None:
    """The cells of a header under the names of their fields; None if they do not name the fields of a record."""
    if _names_columns(cells, asked):
        return list(cells)
    known = {_plain(name): name for shape in _shapes(asked) for name in (*shape, *_BESIDE)}
    columns = [known.get(_plain(cell), cell) for cell in cells]
    return columns if _names_columns(columns, asked) else None


def _plain(cell: str) -> str:
    return cell.strip().removeprefix(_MARK).strip().strip('"').strip().casefold()


def _names_columns(cells: Sequence[str], asked: Shape | None) -> bool:
    return any(set(shape) <= set(cells) for shape in _shapes(asked))


def _shapes(asked: Shape | None) -> list[Shape]:
    """The shapes a table can have: a cell cannot hold a chat."""
    return [shape for shape in SHAPES if len(shape) == 2] if asked is None else [asked]


def _unknown_header(where: str, header: Sequence[str], asked: Shape | None) -> DataError:
    # Only common names are shown: if the header is missing, the cells are a prompt and its target.
    shown = [repr(cell) for cell in header if _plain(cell) in _COMMON.split()]
    hidden = len(header) - len(shown)
    rest = [f"{hidden} not shown here, as they may be facts"] if hidden else []
    known = " or ".join("/".join(shape) for shape in _shapes(asked))
    chat = next((cell for cell in header if _plain(cell) in ("messages", "conversations")), None)
    way_out = (
        "Add such a header, or name your columns with prompt_field and target_field (--prompt-field, --target-field)."
        if chat is None
        else f"Chats ({chat!r}) do not fit into cells: write them as JSONL, one object per line."
    )
    return DataError(
        f"{where} must name the columns, but its {len(header)} cells do not include {known} (found: "
        f"{', '.join([*shown, *rest])}). {way_out}"
    )


def _check_record(
    row: Sequence[str], columns: Sequence[str], where: str, dialect: _Dialect, asked: Shape | None
) -> None:
    if _columns(row, asked) is not None:
        raise DataError(
            f"{where} is another header, whose columns are not those of the first. Two tables were joined: give them "
            "as two files, or write the columns in one order."
        )
    if row[0].startswith(_MARK):
        raise DataError(
            f"{where} begins with a byte-order mark, as where two files were joined, and it would become part of the "
            "text. Remove the mark, or save the joined file from a spreadsheet."
        )
    if len(row) != len(columns):
        raise DataError(
            f"{where} has {len(row)} cells, but the header has {len(columns)}. Quote every cell that contains "
            f"{dialect.delimiter!r}, a quote or a line end."
        )


def _numbered(reader: Any, name: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line on which they start (a quoted cell may span several lines)."""
    while True:
        start = skipped + reader.line_num + 1
        try:
            yield start, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{where_in('line', start, name, 'CSV')} cannot be parsed: {error}. Write it with a CSV library, which "
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
