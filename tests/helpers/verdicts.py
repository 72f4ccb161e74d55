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
        "Decoding goes wrong at position 1: the target's token has p = 0.135, another token p = 0.819. All that "
        "follows comes back once this one token is put right.",
    ),
    "unreachable": (
        TokenRecall((0.1, 2.0), (True, False), (True, False), unreachable=(1,)),
        "Decoding goes wrong at position 1: the frozen head can give its token no p above 1/2, whatever the adapter "
        "does. Word the target differently, or adapt the head as well.",
    ),
    "stopped_early": (
        TokenRecall((2.0, 0.1), (False, True), (False, False), ended="early"),
        "Decoding goes wrong at position 0: the model ends its output there; the target's token has p = 0.135.",
    ),
    "ran_on": (
        TokenRecall((0.1, 2.0), (True, False), (True, False), ended="late"),
        "Decoding goes wrong at position 1: the model goes on where its output should end; the target's token has "
        "p = 0.135.",
    ),
    "after_end": (
        TokenRecall((0.1, 0.1), (True, True), (True, False), ended="inside"),
        "The target goes on at position 1, behind an end-of-sequence token, after which nothing is emitted. Take that "
        "token out of the target.",
    ),
    "near_tie": (
        TokenRecall((0.1, 0.693), (True, True), (True, False), (3.0, 0.6932)),
        "Decoding goes wrong at position 1, where teacher-forced the target's token was the most likely (p = 0.5, "
        "another token p = 0.5): the two ways of computing it differ by rounding. Judge in float32, or train with a "
        "margin.",
    ),
    "unproven": (
        TokenRecall((0.1, 0.9), (True, True), (True, True), (3.0, 1.2)),
        "Verbatim here, but nothing guarantees it: position 1 has p = 0.407, another token p = 0.301, at most 1/2.",
    ),
    "too_thin": (
        TokenRecall((0.1, 0.69), (True, True), (True, True)),
        "Every token is ordered, but position 1 by 0.0031 nats only; here teacher-forced and cached decoding differ by "
        "so much that 0.02 are needed.",
    ),
}  # fmt: skip
