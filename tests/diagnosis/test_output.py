from __future__ import annotations

import pytest

from memlaw.core.facts import EncodedFact
from memlaw.core.recall import TokenRecall
from memlaw.diagnosis.output import NOTHING, with_output

END = 2


@pytest.mark.parametrize(
    ("target", "emitted", "decoded", "edits", "ended"),
    [
        ((5, 6, END), (5, 6, END), (True, True, True), 0, None),
        ((5, 6, END), (5, 7, END), (True, False, True), 1, None),
        ((5, 6, END), (5, END, NOTHING), (True, False, False), 1, "early"),
        ((5, 6, END), (5, 6, 7), (True, True, False), 1, "late"),
        ((5, END, 6), (5, END, NOTHING), (True, True, False), 1, "inside"),
        ((5, END), (5, 3), (True, False), 1, "late"),
    ],
)
def test_the_output_is_compared_token_by_token_and_its_end_is_explained(
    target: tuple[int, ...], emitted: tuple[int, ...], decoded: tuple[bool, ...], edits: int, ended: str | None
) -> None:
    tokens = TokenRecall((0.1,) * len(target), (True,) * len(target))
    outcome = with_output(tokens, EncodedFact("f", (9, *target), 1), emitted, (END,))
    assert (outcome.decoded, outcome.edits, outcome.ended) == (decoded, edits, ended)
