"""The definitions of arXiv 2605.30260, section 3, said slowly: one record at a time, one token at a time."""

from __future__ import annotations

import math


def verdict(nll, decoded, tolerance):
    """(exact, certified, margin, earliest stubborn position, first failure) of one record, losses in nats."""
    earliest_stubborn = None
    for position in range(len(nll)):
        if not nll[position] < math.log(2) and earliest_stubborn is None:
            earliest_stubborn = position
    margin = min(math.log(2) - loss for loss in nll)
    if decoded is None:
        return None, None, margin, earliest_stubborn, None
    first_failure = None
    for position in range(len(nll)):
        if not decoded[position] and first_failure is None:
            first_failure = position
    exact = first_failure is None
    return exact, exact and margin > tolerance, margin, earliest_stubborn, first_failure


def edit_distance(left, right):
    """Fewest insertions, deletions and replacements that turn one sequence into the other."""
    if not left or not right:
        return len(left) + len(right)
    if left[-1] == right[-1]:
        return edit_distance(left[:-1], right[:-1])
    shorter = (left[:-1], right), (left, right[:-1]), (left[:-1], right[:-1])
    return 1 + min(edit_distance(*pair) for pair in shorter)


def expected_tokens(nll):
    """Mean number of tokens sampled right before the first error: every number of them, times its probability."""
    mean, so_far = 0.0, 1.0
    for position in range(len(nll)):
        p = math.exp(-nll[position])
        mean += position * so_far * (1 - p)
        so_far *= p
    return mean + len(nll) * so_far
