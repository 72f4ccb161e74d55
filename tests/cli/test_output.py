from __future__ import annotations

import pytest

from memlaw.cli.output import counted, human_bytes, printable


@pytest.mark.parametrize(("number", "text"), [(0, "0 cells"), (1, "1 cell"), (1000, "1,000 cells")])
def test_numbers_agree_with_their_nouns(number: int, text: str) -> None:
    assert counted(number, "cell") == text


def test_bytes_are_in_decimal_units() -> None:
    assert (human_bytes(2_560), human_bytes(4_000_000)) == ("2.6 kB", "4.00 MB")


def test_control_characters_are_escaped() -> None:
    assert (printable("n\xe9"), printable("\x1b[2J")) == ("n\xe9", "'\\x1b[2J'")
