"""Read points from a CSV table or from the finished cells of a probe; every fault is reported in a sentence."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from memlaw.core.cells import CellResult
from memlaw.core.errors import FitError
from memlaw.core.points import LawPoint
from memlaw.law.points import Axis

_NEEDED = ("rank", "length", "delta_loss")

_OPTIONAL = ("final_loss", "parameters", "seed")

_LEAST = {"rank": 1, "length": 1, "parameters": 1, "seed": 0}
"""Columns of whole numbers, and the least value of each."""

_ALIASES = {
    "r": "rank", "lora_rank": "rank", "lora_r": "rank", "ranks": "rank",
    "l": "length", "len": "length", "n": "length", "tokens": "length", "length_tokens": "length", "lengths": "length",
    "target_tokens": "length", "num_tokens": "length",
    "dl": "delta_loss", "delta": "delta_loss", "delta_l": "delta_loss", "loss_delta": "delta_loss",
    "loss_drop": "delta_loss", "deltaloss": "delta_loss",
}  # fmt: skip
"""Other common names of the needed columns."""

_CHARACTERS = frozenset({"length_chars", "length_characters", "chars", "characters", "char_length", "num_chars"})

_VARIES = frozenset({"rank", "length", "seed", "train"})


def read_points(path: str | Path) -> tuple[LawPoint, ...]:
    """The points of a CSV file with columns rank, length, delta_loss and optionally final_loss, parameters and seed.

    Losses are in nats per target token, lengths in target tokens. `loss_final`, its name in a probe's own table, is
    read as final_loss; other columns are ignored. Raises FitError naming the file, line and column.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FitError(f"{file} is not UTF-8 text (byte {error.start}). Save the table as CSV in UTF-8.") from None
    except OSError as error:
        raise FitError(f"{file} cannot be read: {error.strerror}. Pass a CSV file of points.") from None
    return points_from_text(text, name=file.name)


def points_from_text(text: str, *, name: str) -> tuple[LawPoint, ...]:
    """The points of CSV text; messages call it `name`. Raises FitError."""
    # line_num is the last line of a record; it differs from the first only for quoted line breaks, never in numbers.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    seen: dict[tuple[float | None, ...], int] = {}
    points = []
    try:
        header = [column.strip() for column in next(reader, [])]
        columns = _columns(header, name)
        for row in reader:
            if any(row):
                point = _point(row, header, columns, f"{name}, line {reader.line_num}")
                _check_new(point, seen, reader.line_num, name)
                points.append(point)
    except csv.Error as error:
        raise FitError(f"{name}, line {reader.line_num}: {error}. Each line is numbers separated by commas.") from None
    if not points:
        raise FitError(f"{name} has a header but no points. Add one line for each cell, such as 8,1000,5.21,0.93.")
    return tuple(points)


def points_from_results(results: Iterable[CellResult], *, axis: Axis = "rank") -> tuple[LawPoint, ...]:
    """The finished cells of a probe as points.

    Raises FitError for cells that differ in anything but rank, length and seed (and, on the axis "parameters",
    placement), and for cells that stopped early: the law needs a fixed training budget.
    """
    finished = [result for result in results if result.status == "finished"]
    varies = _VARIES | {"placement"} if axis == "parameters" else _VARIES
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for result in finished:
        training = dataclasses.asdict(result.cell.train)
        for setting, value in (dataclasses.asdict(result.cell) | training).items():
            if setting not in varies:
                kinds[setting].add(str(value))
    if "recalled" in kinds["until"]:
        raise FitError(
            "Some cells stopped as soon as they were recalled (until=recalled), so their loss shows when they stopped, "
            "not what fits. Fit a probe trained to a fixed budget."
        )
    for setting, values in kinds.items():
        if len(values) > 1:
            raise FitError(
                f"The finished cells differ in {setting} ({', '.join(sorted(values))}), and a law holds for one "
                f"{setting} only. Fit them separately."
            )
    return tuple(
        LawPoint(
            result.cell.rank,
            result.cell.length,
            result.delta_loss,
            result.loss_final,
            result.parameters,
            result.cell.train.seed,
            result.loss_memoryless,
        )
        for result in finished
        if result.delta_loss is not None
    )


def _columns(header: list[str], name: str) -> dict[str, int]:
    """Index of each known column. Raises FitError if one is missing or appears twice."""
    known = ["final_loss" if column == "loss_final" else column for column in header]
    missing = [column for column in _NEEDED if column not in known]
    if missing:
        raise FitError(f"{name} has no column {' nor '.join(missing)}{_hint(known, missing)}")
    twice = [column for column in (*_NEEDED, *_OPTIONAL) if known.count(column) > 1]
    if twice:
        raise FitError(f"{name} has two columns {twice[0]}, so it is unclear which one to use. Remove one.")
    return {column: known.index(column) for column in (*_NEEDED, *_OPTIONAL) if column in known}


def _hint(header: list[str], missing: list[str]) -> str:
    """How to fix missing columns. Repeats only names like those of known columns, because the file may hold secrets."""
    line = ",".join(header)
    for separator, called in ((";", "semicolons"), ("\t", "tabs")):
        if line.count(separator) >= len(_NEEDED) - 1:
            return (
                f": its columns are separated by {called}. Save the table with commas between columns and decimal "
                "points in numbers."
            )
    if "length" in missing and (counted := next((at for at in header if at.lower() in _CHARACTERS), None)):
        return (
            f": it has {counted}, but a law's length is in target tokens. Count them with the model's own tokenizer, "
            'len(tokenizer(target, add_special_tokens=False)["input_ids"]) of each target, and name the column length.'
        )
    renamed = {column: other for column in missing if (other := _likely_column(column, header)) is not None}
    if renamed:
        return "; rename " + " and ".join(f"{other!r} to {column}" for column, other in renamed.items()) + "."
    return (
        "; its first line must be rank,length,delta_loss (plus final_loss for the bounded form, seed for replicates). "
        "A law is fitted to the points of a probe, not to facts."
    )


def _likely_column(column: str, header: list[str]) -> str | None:
    """The column of the header that is probably the missing one: an alias or a misspelling."""
    others = [other for other in header if other not in (*_NEEDED, *_OPTIONAL)]
    plain = {other.lower().replace(" ", "_").replace("-", "_").replace("\N{GREEK SMALL LETTER DELTA}", "d"): other
             for other in others}  # fmt: skip
    for name, other in plain.items():
        if name == column or _ALIASES.get(name) == column:
            return other
    close = get_close_matches(column, plain, n=1, cutoff=0.8)
    return plain[close[0]] if close else None


def _point(row: list[str], header: list[str], columns: dict[str, int], where: str) -> LawPoint:
    if len(row) != len(header):
        raise FitError(
            f"{where} has {len(row)} fields, but the first line names {len(header)}. Commas separate fields: write "
            "numbers with a decimal point."
        )
    fields = {column: row[index].strip() for column, index in columns.items()}
    known = {column: _number(text, column, where) for column, text in fields.items() if text or column in _NEEDED}
    seed = known.get("seed")
    return LawPoint(
        known["rank"],
        known["length"],
        known["delta_loss"],
        known.get("final_loss"),
        known.get("parameters"),
        None if seed is None else int(seed),
    )


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        comma = " Write numbers with a decimal point." if text.replace(",", "", 1).lstrip("+-").isdigit() else ""
        raise FitError(f"{where}: {column} is {text!r}, not a number.{comma}") from None
    if not math.isfinite(value):
        raise FitError(f"{where}: {column} is {text!r}. A cell that did not finish cannot be fitted: remove it.")
    least = _LEAST.get(column)
    if least is not None and (value < least or value != int(value)):
        raise FitError(f"{where}: {column} is {text}, but it must be a whole number of at least {least}.")
    if column == "final_loss" and value < 0:
        raise FitError(f"{where}: final_loss is {text}, but a cross-entropy is never negative.")
    return value


def _check_new(point: LawPoint, seen: dict[tuple[float | None, ...], int], line: int, name: str) -> None:
    """Raises FitError if an earlier line holds the same run: it is unclear whether both count, or which one."""
    before = seen.setdefault((point.rank, point.length, point.parameters, point.seed), line)
    if before == line:
        return
    cell = f"rank {point.rank:g}, length {point.length:g}"
    if point.seed is None:
        raise FitError(
            f"{name}, line {line} repeats the cell of line {before} ({cell}). If they are replicates, add a column "
            "seed that tells them apart; otherwise remove one."
        )
    raise FitError(
        f"{name}, line {line} repeats the run of line {before} ({cell}, seed {point.seed}). Give each replicate its "
        "own seed, or remove one."
    )
