from __future__ import annotations

from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.journals import a_result, cell_file, sealed
from memlaw.core.canonical import canonical_json, digest
from memlaw.core.cells import result_to_dict
from memlaw.core.errors import JournalError
from memlaw.sweep.journal import Journal


@given(
    loss=st.floats(allow_nan=False, allow_infinity=False),
    message=st.text() | st.sampled_from(["\ud800", "line\u2028line", "\x00"]),
    steps=st.integers(0, 2**62),
)
def test_every_finite_result_reads_back_unchanged(tmp_path_factory, loss, message, steps):
    root = tmp_path_factory.mktemp("journal")
    result = a_result(loss_init=loss, message=message, steps=steps)
    journal = Journal(root)
    journal.publish(result)
    assert journal.results() == (result,)
    assert journal.findings == []


def test_every_single_flipped_bit_is_detected_and_the_file_kept_aside(tmp_path):
    result = a_result()
    Journal(tmp_path).publish(result)
    path = cell_file(tmp_path, result)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        journal = Journal(tmp_path)
        assert journal.results() == (), bit
        assert len(journal.findings) == 1
        assert not path.exists()
    assert len(list((tmp_path / "quarantine").iterdir())) == 8 * len(good)


def _other_key(body: dict[str, Any]) -> str:
    return sealed(body | {"cell": body["cell"] | {"rank": 99}})


DAMAGE = {
    "empty": lambda body: "",
    "torn": lambda body: sealed(body)[:-200],
    "one newline more": lambda body: sealed(body) + "\n",
    "not JSON": lambda body: "results!",
    "not an object": lambda body: "[1, 2]",
    "no seal": lambda body: canonical_json(body),
    "a body that is no result": lambda body: sealed(["no", "result"]),
    "a body without a cell": lambda body: sealed({"rank": 1}),
    "another cell": _other_key,
    "the hash of something else": lambda body: canonical_json({"body": body, "sha256": digest("else")}) + "\n",
    "NaN": lambda body: sealed(body).replace("4.0", "NaN"),
    "nested without end": lambda body: "[" * 100_000,
    "not UTF-8": lambda body: sealed(body).encode() + b"\xff",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_quarantined_reported_and_not_counted(tmp_path, damage):
    journal = Journal(tmp_path)
    result, other = a_result(1), a_result(2)
    journal.publish(result)
    journal.publish(other)
    content = damage(result_to_dict(result))
    content = content if isinstance(content, bytes) else content.encode()
    cell_file(tmp_path, result).write_bytes(content)

    assert journal.results() == (other,)
    [finding] = journal.findings
    assert finding.startswith(f"cells/{result.cell.key}.json was damaged (")
    assert finding.endswith("It is in quarantine; rerun the probe to train the cell again.")
    [aside] = (tmp_path / "quarantine").iterdir()
    assert aside.read_bytes() == content
    assert not journal.holds(result.cell.key)


def test_an_intact_file_with_unknown_fields_stops_reading_as_another_versions(tmp_path):
    body = result_to_dict(a_result()) | {"entropy": 0.1}
    path = cell_file(tmp_path, a_result())
    path.parent.mkdir()
    path.write_text(sealed(body))
    with pytest.raises(
        JournalError, match=r"is intact but has fields or values that this version of memlaw does not know.*newer one"
    ):
        Journal(tmp_path).results()
    assert path.exists()


def test_an_intact_file_with_a_setting_out_of_range_stops_reading_as_another_versions(tmp_path):
    body = result_to_dict(a_result())
    body["cell"]["train"]["method"] = "a later one"
    path = tmp_path / "cells" / f"{digest(body['cell'])}.json"
    path.parent.mkdir()
    path.write_text(sealed(body))
    with pytest.raises(JournalError, match="fields or values that this version of memlaw does not know.*newer one"):
        Journal(tmp_path).results()
    assert path.exists()


def test_a_cell_of_an_older_version_with_fewer_settings_is_still_recognised(tmp_path):
    body = result_to_dict(a_result())
    del body["cell"]["train"]["init"]
    key = digest(body["cell"])
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{key}.json").write_text(sealed(body))
    journal = Journal(tmp_path)
    assert journal.results() == (a_result(),)
    journal.write_table()
    assert pyarrow.parquet.read_table(tmp_path / "results.parquet")["key"].to_pylist() == [key]
