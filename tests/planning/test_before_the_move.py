"""Law files of the last version before the package was reorganised: read, used and written again."""

import json

import numpy as np
import pytest

from helpers.paths import FIXTURES
from memlaw.planning.library import KnownLaw

LAWS = FIXTURES / "before_the_move" / "laws"

NUMBERS = json.loads((LAWS / "predictions.json").read_text(encoding="utf-8"))
"""What that version answered, asked through the Python API."""


def test_every_file_has_its_numbers():
    assert (
        {path.stem for path in LAWS.glob("*.json")} - {"predictions"} == NUMBERS.keys() == {"bounded", "log", "paper"}
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_an_old_law_file_gives_the_same_answers_and_the_same_file(name):
    text = (LAWS / f"{name}.json").read_text(encoding="utf-8")
    known = KnownLaw.from_json(text, name=name)
    law, then = known.law, NUMBERS[name]
    for rank, length, delta in then["predict"]:
        assert law.predict(rank, length) == pytest.approx(delta, rel=1e-12)
    for length, rank in then["rank_for"]:
        assert law.rank_for(length) == pytest.approx(rank, rel=1e-12)
    for rank, length in then["length_for"]:
        assert law.length_for(rank) == pytest.approx(length, rel=1e-9)
    rank, length, *ends = then["interval"]
    assert np.concatenate(law.interval(np.array([rank]), np.array([length]))) == pytest.approx(ends, rel=1e-9)
    assert known.to_json() == text


def test_origin_and_recalled_cells_of_an_old_file_are_kept():
    known = KnownLaw.from_json((LAWS / "bounded.json").read_text(encoding="utf-8"), name="bounded")
    assert known.law.origin is not None
    assert (known.law.origin.model, known.law.origin.parameters_per_rank) == ("Qwen3-8B", 8192.0)
    assert [cell.exact for cell in known.cells] == [3, 10]
