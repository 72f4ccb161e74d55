from __future__ import annotations

import math

from hypothesis import strategies as st

from helpers.sample import fact
from memlaw.core.recall import LN2, TokenRecall
from memlaw.diagnosis.verdicts import diagnose

LOSSES = st.one_of(st.floats(0, 8), st.sampled_from([0.0, LN2, math.nextafter(LN2, 0), math.nextafter(LN2, 1)]))


@st.composite
def measurements(draw):
    """Some records with losses, and decoding of all of them or none, that need not fit the losses."""
    decoded = draw(st.booleans())
    tokens = []
    for length in draw(st.lists(st.integers(1, 7), min_size=1, max_size=6)):
        flags = st.lists(st.booleans(), min_size=length, max_size=length).map(tuple)
        nll = tuple(draw(st.lists(LOSSES, min_size=length, max_size=length)))
        tokens.append(TokenRecall(nll, draw(flags), draw(flags) if decoded else None))
    return tokens


def judge(tokens, tolerance=0.0):
    """The verdicts on records named by their place."""
    facts = [fact(str(row), len(measured.nll)) for row, measured in enumerate(tokens)]
    return diagnose(facts, tokens, tolerance=tolerance, dtype="float32")


REASONS = {
    "stubborn": (
        TokenRecall((0.1, 2.0, 0.1), (True, False, True), (True, False, True), (3.0, 0.2, 3.0), 1, True),
        "Decoding goes wrong at position 1: the target's token has p = 0.135, another token p = 0.819. Everything "
        "after it is recalled once this one token is corrected.",
    ),
    "unreachable": (
        TokenRecall((0.1, 2.0), (True, False), (True, False), unreachable=(1,)),
        "Decoding goes wrong at position 1: with the frozen head, no adapter can bring its token above p = 1/2. Reword "
        "the target, or train the head as well.",
    ),
    "stopped_early": (
        TokenRecall((2.0, 0.1), (False, True), (False, False), ended="early"),
        "Decoding goes wrong at position 0: the model ends its output too early; the target's token has p = 0.135.",
    ),
    "ran_on": (
        TokenRecall((0.1, 2.0), (True, False), (True, False), ended="late"),
        "Decoding goes wrong at position 1: the model continues where its output should end; the target's token has "
        "p = 0.135.",
    ),
    "after_end": (
        TokenRecall((0.1, 0.1), (True, True), (True, False), ended="inside"),
        "The target continues at position 1, after an end-of-sequence token, and nothing is emitted after that. Remove "
        "the token from the target.",
    ),
    "near_tie": (
        TokenRecall((0.1, 0.693), (True, True), (True, False), (3.0, 0.6932)),
        "Decoding goes wrong at position 1, although teacher-forced the target's token was the most likely (p = 0.5, "
        "another token p = 0.5): the two computations differ by rounding. Measure in float32, or train with a margin.",
    ),
    "unproven": (
        TokenRecall((0.1, 0.9), (True, True), (True, True), (3.0, 1.2)),
        "Recalled verbatim this time, but not guaranteed: position 1 has p = 0.407, another token p = 0.301, at "
        "most 1/2.",
    ),
    "too_thin": (
        TokenRecall((0.1, 0.69), (True, True), (True, True)),
        "Every token is ordered, but position 1 has a margin of only 0.0031 nats. Teacher-forced and cached decoding "
        "round differently here, so 0.02 are needed.",
    ),
}  # fmt: skip
