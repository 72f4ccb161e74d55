"""Cells as the law sees them: from a CSV, from a probe; which are saturated; L_init by length."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from memlaw.errors import FitError
from memlaw.records import CellResult, LawPoint

SATURATED = 0.69
"""L_final (nats) at or under which a cell says nothing of capacity: the published cut, just under ln 2."""

_NEEDED = ("rank", "length", "delta_loss")
_OPTIONAL = ("final_loss", "parameters")
_VARIES = frozenset({"rank", "length", "seed", "train"})
_WHOLE = frozenset({"rank", "length", "parameters"})


def is_saturated(point: LawPoint) -> bool:
    """L_final <= 0.69. A cell of unknown L_final is taken as unsaturated: its owner says so by fitting it."""
    return point.final_loss is not None and point.final_loss <= SATURATED


def loss_table(points: Iterable[LawPoint]) -> tuple[tuple[float, float], ...]:
    """(length, mean L_init of its cells), rising in length; empty where no final loss is known."""
    seen: defaultdict[float, list[float]] = defaultdict(list)
    for point in points:
        if point.loss_init is not None:
            seen[point.length].append(point.loss_init)
    return tuple((length, math.fsum(seen[length]) / len(seen[length])) for length in sorted(seen))


def read_points(path: str | Path) -> tuple[LawPoint, ...]:
    """The points of a CSV file with the columns rank, length, delta_loss and, if known, final_loss and parameters.

    Losses in nats per target token, lengths in target tokens. Other columns are left alone; `loss_final`, the name in
    a probe's own table, is read as final_loss. Raises FitError naming the file, line and column.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FitError(f"{file} is not UTF-8 text (byte {error.start}). Save the table as CSV in UTF-8.") from None
    except OSError as error:
        raise FitError(f"{file} cannot be read: {error.strerror}. Give a CSV file of points.") from None
    return points_from_text(text, name=file.name)


def points_from_text(text: str, *, name: str) -> tuple[LawPoint, ...]:
    """The points of CSV text; `name` is what messages call it."""
    # A record's line is where its last field ends: the two differ only for quoted line breaks, which no number has.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        columns = _columns(header, name)
        points = [_point(row, header, columns, f"{name}, line {reader.line_num}") for row in reader if any(row)]
    except csv.Error as error:
        raise FitError(f"{name}, line {reader.line_num}: {error}. Each line is numbers separated by commas.") from None
    if not points:
        raise FitError(f"{name} has a header but no points: each further line is one cell, such as 8,1000,5.21,0.93.")
    return tuple(points)


def points_from_results(results: Iterable[CellResult]) -> tuple[LawPoint, ...]:
    """The finished cells of a probe. Cells may differ in rank, length and seed; in anything else they share no law.

    Raises FitError for cells that differ in model, data, placement or training, and for cells that stopped early.
    """
    finished = [result for result in results if result.status == "finished"]
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for result in finished:
        training = dataclasses.asdict(result.cell.train)
        for setting, value in (dataclasses.asdict(result.cell) | training).items():
            if setting not in _VARIES:
                kinds[setting].add(str(value))
    if "recalled" in kinds["until"]:
        raise FitError(
            "Some cells stopped as soon as they were recalled (until=recalled). How far their loss fell tells when "
            "they stopped, not what fits. Fit a probe trained to a fixed budget."
        )
    for setting, values in kinds.items():
        if len(values) > 1:
            raise FitError(
                f"The finished cells differ in {setting} ({', '.join(sorted(values))}). One law holds for one "
                f"{setting} only: fit them one at a time."
            )
    return tuple(
        LawPoint(result.cell.rank, result.cell.length, result.delta_loss, result.loss_final, result.parameters)
        for result in finished
        if result.delta_loss is not None
    )


def _columns(header: list[str], name: str) -> dict[str, int]:
    """Where each column we know stands. Raises FitError if one is missing or there twice."""
    known = ["final_loss" if column == "loss_final" else column for column in header]
    missing = [column for column in _NEEDED if column not in known]
    if missing:
        raise FitError(
            f"{name} has no column {' nor '.join(missing)}; its first line must name rank,length,delta_loss (and "
            "final_loss for the bounded form), separated by commas. A law is fitted to a probe's points, not to facts."
        )
    twice = [column for column in (*_NEEDED, *_OPTIONAL) if known.count(column) > 1]
    if twice:
        raise FitError(f"{name} has the column {twice[0]} twice, so which one counts is unknown. Remove one.")
    return {column: known.index(column) for column in (*_NEEDED, *_OPTIONAL) if column in known}


def _point(row: list[str], header: list[str], columns: dict[str, int], where: str) -> LawPoint:
    if len(row) != len(header):
        raise FitError(
            f"{where} has {len(row)} fields, but the first line names {len(header)}. Numbers are written with a "
            "decimal point, since commas separate fields."
        )
    fields = {column: row[index].strip() for column, index in columns.items()}
    known = {column: _number(text, column, where) for column, text in fields.items() if text or column in _NEEDED}
    return LawPoint(
        known["rank"], known["length"], known["delta_loss"], known.get("final_loss"), known.get("parameters")
    )


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise FitError(f"{where}: {column} is {text!r}, not a number.") from None
    if not math.isfinite(value):
        raise FitError(f"{where}: {column} is {text!r}. A cell that did not finish has no place in a fit: remove it.")
    if column in _WHOLE and (value < 1 or value != int(value)):
        raise FitError(f"{where}: {column} is {text}, but it counts something: a whole number from 1 up is needed.")
    if column == "final_loss" and value < 0:
        raise FitError(f"{where}: final_loss is {text}, but a cross-entropy is never negative.")
    return value
