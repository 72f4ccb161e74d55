from __future__ import annotations

import pytest

from helpers import sample
from memlaw.cli.recall import recall_lines


@pytest.mark.parametrize("count", [1, 1000])
def test_numbers_agree_with_their_nouns(count: int) -> None:
    report = sample.recall({str(number): [0.1] for number in range(count)})
    assert next(iter(recall_lines(report))).startswith("1 record, 1 t" if count == 1 else "1,000 records, 1,000 t")
