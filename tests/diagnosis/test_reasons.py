from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.verdicts import REASONS, judge, measurements
from memlaw.core.recall import TokenRecall


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_its_sentence(reason):
    tokens, sentence = REASONS[reason]
    item = judge([tokens], 0.02).items[0]
    assert (item.reason, item.why) == (reason, sentence)


def test_without_decoding_a_stubborn_token_is_the_reason_and_the_rest_is_not_claimed():
    stubborn, beyond, fine = judge(
        [
            TokenRecall((0.1, 2.0), (True, False)),
            TokenRecall((2.0,), (False,), unreachable=(0,)),
            TokenRecall((0.1,), (True,)),
        ]
    ).items
    assert (stubborn.reason, stubborn.why) == (
        "stubborn",
        "Position 1 has p = 0.135, at most 1/2; it was not decoded.",
    )
    assert beyond.reason == "unreachable"
    assert (fine.reason, fine.why) == (None, None)


@given(measurements(), st.sampled_from([0.0, 0.02]))
def test_a_decoded_record_has_a_reason_exactly_if_it_is_not_certified(tokens, tolerance):
    for item in judge(tokens, tolerance).items:
        assert (item.reason is None) == (item.why is None)
        if item.exact is not None:
            assert (item.reason is None) == bool(item.certified)
