from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.recall import is_ordered


@given(st.lists(st.floats(-40, 40), min_size=2, max_size=40))
def test_an_ordered_token_is_the_argmax_whatever_the_others_are(logits):
    shifted = np.array(logits) - max(logits)
    nll = np.log(np.exp(shifted).sum()) - shifted
    for token in range(len(logits)):
        if is_ordered(nll[token]):
            assert all(logits[token] > other for place, other in enumerate(logits) if place != token)


def test_a_tie_at_one_half_is_stubborn_in_every_precision():
    for dtype in (np.float32, np.float64):
        p = np.array([0.5, 0.5, 0.0], dtype=dtype)
        assert p.argmax() == 0
        assert not is_ordered(float(-np.log(p[1])))


def test_one_half_is_sufficient_but_not_necessary():
    assert np.array([0.40, 0.35, 0.25]).argmax() == 0
    assert not is_ordered(-math.log(0.40))
