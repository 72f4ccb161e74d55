"""All results of a probe as one table, one row per result, sorted by key."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memlaw.core.canonical import canonical_json, to_dict
from memlaw.core.cells import CellResult

if TYPE_CHECKING:
    import pyarrow

TABLE = "results.parquet"

Rows = Sequence[Mapping[str, Any]]

COLUMNS: dict[str, type] = {
    "key": str,
    "model": str,
    "placement": str,
    "rank": int,
    "parameters": int,
    "length": int,
    "method": str,
    "seed": int,
    "steps": int,
    "loss_init": float,
    "loss_final": float,
    "delta_loss": float,
    "acc_token": float,
    "acc_em": float,
    "ordered": int,
    "certified": int,
    "status": str,
    "records": int,
    "loss_memoryless": float,
    "certified_tokens": int,
    "stored_bits": float,
    "certified_bits": float,
    "bits_per_parameter": float,
    "message": str,
    "tokenizer": str,
    "data": str,
    "dtype": str,
    "algorithm": int,
    "libraries": str,
    "device": str,
    "max_steps": int,
    "rule": str,
    "until": str,
    "margin": float,
    "position": float,
    "focus": float,
    "boundaries": tuple,
    "optimizer": str,
    "momentum": float,
    "learning_rate": float,
    "average": int,
    "anneal": float,
    "schedule": str,
    "batch_size": int,
    "clip": float,
    "weight_decay": float,
    "protect": float,
    "rehearse": int,
    "dropout": float,
    "scale": float,
    "scaling": str,
    "init": str,
    "served_as": str,
}
"""Columns of results.parquet and their types; a column is null where a cell has no such value.

Spelled out, since files that people read must not change when the settings are defined in another order.
"""


def rows_of(results: Mapping[str, CellResult]) -> list[dict[str, Any]]:
    """The rows of results given by key.

    `steps` counts the optimizer steps taken. The training settings are columns too; their `steps` is `max_steps`, and
    `served_as` names precisions, with commas.
    """
    return [_row(key, result) for key, result in sorted(results.items())]


def _row(key: str, result: CellResult) -> dict[str, Any]:
    from memlaw.law.bits import memory_bits  # loads numpy, which reading a journal does not need

    measured = to_dict(result)
    cell = measured.pop("cell")
    train = cell.pop("train")
    own = {"max_steps": train.pop("steps"), "served_as": ",".join(train.pop("served_as"))}
    row = {"key": key, **cell, **train, **measured, **to_dict(memory_bits(result)), **own}
    return {name: _readable(value) if isinstance(value, str) else value for name, value in row.items()}


def _readable(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold but Parquet cannot."""
    return text.encode(errors="replace").decode()


def table_of(rows: Rows) -> pyarrow.Table:
    """The rows with the types of COLUMNS, even if there are no rows."""
    import pyarrow

    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        tuple: pyarrow.list_(pyarrow.int64()),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    return pyarrow.Table.from_pylist(rows, schema=schema)


def as_parquet(rows: Rows) -> bytes:
    """The same rows give the same bytes."""
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table_of(rows), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def as_csv(rows: Rows) -> bytes:
    """UTF-8 with a header; unknown values are empty, lists are JSON."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: canonical_json(value) if isinstance(value, list) else value for name, value in row.items()}
        )
    return text.getvalue().encode()


def as_jsonl(rows: Rows) -> bytes:
    """One JSON object per line, in the order of COLUMNS; unknown values are null."""
    lines = (json.dumps({name: row[name] for name in COLUMNS}, allow_nan=False) + "\n" for row in rows)
    return "".join(lines).encode()


FORMATS: dict[str, Callable[[Rows], bytes]] = {".csv": as_csv, ".jsonl": as_jsonl, ".parquet": as_parquet}
"""Suffix of a file -> the function that makes its content."""
