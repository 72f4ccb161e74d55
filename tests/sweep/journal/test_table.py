from __future__ import annotations

import dataclasses

import pyarrow.parquet
import pytest

from helpers.journals import a_failure, a_result, cell_file, sealed
from memlaw.core.cells import Cell, CellResult, result_to_dict
from memlaw.core.config import TrainConfig
from memlaw.core.recall import LN2
from memlaw.sweep.journal import COLUMNS, Journal

CONTRACT = [
    "key", "model", "placement", "rank", "parameters", "length", "method", "seed", "steps", "loss_init", "loss_final",
    "delta_loss", "acc_token", "acc_em", "ordered", "certified", "status",
]  # fmt: skip

BITS = ("loss_memoryless", "certified_tokens")
"""Fields of a result that came later."""


def test_the_table_has_the_promised_columns_first_and_one_row_a_cell_sorted_by_key(tmp_path):
    journal = Journal(tmp_path)
    for result in (a_result(2), a_failure(3), a_result(1)):
        journal.publish(result)
    journal.write_table()
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    assert table.column_names[: len(CONTRACT)] == CONTRACT
    rows = table.to_pylist()
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    row = next(row for row in rows if row["rank"] == 1)
    assert row["loss_init"] == 4.0
    assert row["delta_loss"] == 3.5
    assert row["steps"] == row["max_steps"] == 100
    assert row["method"] == "sft"
    assert row["seed"] == 42
    assert row["learning_rate"] == TrainConfig.learning_rate
    failed = next(row for row in rows if row["rank"] == 3)
    assert (failed["status"], failed["message"], failed["loss_init"]) == ("failed", "out of memory", None)


def test_the_table_leaves_no_field_of_a_result_out():
    names = {field.name for record in (Cell, CellResult, TrainConfig) for field in dataclasses.fields(record)}
    derived = {"key", "max_steps", "stored_bits", "certified_bits", "bits_per_parameter"}
    assert set(COLUMNS) == names - {"cell", "train"} | derived


def test_the_table_has_the_bits_of_cells_where_they_are_known(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result(1, loss_final=1.0, loss_memoryless=3.0, certified_tokens=5))
    journal.publish(a_failure(2))
    journal.write_table()
    rows = sorted(pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist(), key=lambda row: row["rank"])
    bits = [[row[name] for name in ("stored_bits", "certified_bits", "bits_per_parameter")] for row in rows]
    stored, certified = 10 * 2.0 / LN2, 5 * 3.0 / LN2
    assert bits == [pytest.approx([stored, certified, stored / 64]), [None] * 3]


def test_a_cell_written_before_bits_were_measured_is_read_and_counts(tmp_path):
    result = a_result()
    older = {name: value for name, value in result_to_dict(result).items() if name not in BITS}
    (tmp_path / "cells").mkdir()
    cell_file(tmp_path, result).write_text(sealed(older))
    journal = Journal(tmp_path)
    assert journal.holds(result.cell.key)
    assert journal.results() == (result,)
    journal.write_table()
    [row] = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert (row["loss_final"], row["loss_memoryless"], row["stored_bits"]) == (0.5, None, None)
    assert journal.findings == []


def test_the_same_cells_give_the_same_bytes_and_types_even_without_a_row(tmp_path):
    tables = []
    for name, order in (("a", (1, 2, 3)), ("b", (3, 1, 2))):
        journal = Journal(tmp_path / name)
        for rank in order:
            journal.publish(a_result(rank))
        journal.write_table()
        journal.write_table()
        tables.append((tmp_path / name / "results.parquet").read_bytes())
    assert tables[0] == tables[1]
    Journal(tmp_path / "empty").write_table()
    empty = pyarrow.parquet.read_table(tmp_path / "empty" / "results.parquet")
    assert empty.num_rows == 0
    assert empty.schema == pyarrow.parquet.read_schema(tmp_path / "a" / "results.parquet")


def test_the_table_can_be_deleted_and_rebuilt(tmp_path):
    journal = Journal(tmp_path)
    journal.publish(a_result())
    journal.write_table()
    before = (tmp_path / "results.parquet").read_bytes()
    (tmp_path / "results.parquet").unlink()
    Journal(tmp_path).write_table()
    assert (tmp_path / "results.parquet").read_bytes() == before
