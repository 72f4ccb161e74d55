from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.canonical import canonical_json, digest
from memlaw.core.errors import ConfigError, LedgerError
from memlaw.core.sealed import Fault, Inspection, seal, unseal

BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(BODIES)
def test_a_body_reads_back_as_it_was(body):
    assert unseal(seal(body)) == body


def test_the_format_is_one_line_with_the_body_and_its_hash():
    body = {"a": 1}
    assert seal(body).decode() == canonical_json({"body": body, "sha256": digest(body)}) + "\n"


def test_every_flipped_bit_and_every_cut_is_noticed():
    good = seal({"a": [1, 2.5, "x"], "b": None})
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="its SHA-256 does not match|cut short or not a file that memlaw sealed"):
            unseal(bytes(bad))
    for length in range(len(good)):
        with pytest.raises(ValueError, match="cut short"):
            unseal(good[:length])


def test_nan_cannot_be_sealed():
    with pytest.raises(ValueError, match="JSON compliant"):
        seal([float("nan")])


def raising(error: Exception):
    def parse(_content: bytes) -> None:
        raise error

    return parse


def test_an_inspection_tells_damage_from_what_cannot_be_read_and_goes_on(tmp_path):
    (tmp_path / "deeper").mkdir()
    path = tmp_path / "deeper" / "file"
    path.write_bytes(b"content")
    inspection = Inspection(tmp_path)
    assert inspection.read(path, bytes.decode) == "content"
    assert inspection.read(path, raising(ValueError("it is cut"))) is None
    assert inspection.read(path, raising(ConfigError("a later setting"))) is None
    assert inspection.read(tmp_path / "nowhere", bytes.decode) is None
    assert inspection.damaged == [Fault("deeper/file", "it is cut")]
    assert inspection.unreadable == [
        Fault("deeper/file", "it has fields or values of another version of memlaw"),
        Fault("nowhere", "No such file or directory"),
    ]


def test_what_a_file_has_to_say_to_the_user_is_raised(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="upgrade"):
        Inspection(tmp_path).read(tmp_path / "file", raising(LedgerError("upgrade")))
