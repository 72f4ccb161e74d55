from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers.sample import many, recall
from helpers.verdicts import REASONS, judge, measurements
from memlaw.core.recall import LN2, TokenRecall
from memlaw.diagnosis.patterns import patterns, spearman


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_the_correlation_is_spearmans_and_lies_in_its_interval(pairs):
    found = spearman(np.array(pairs, dtype=float).reshape(-1, 2))
    columns = [set(column) for column in zip(*pairs, strict=True)]
    if len(pairs) < 3 or any(len(column) == 1 for column in columns):
        assert found is None
        return
    assert found.value == pytest.approx(stats.spearmanr(pairs).statistic)
    assert found.n == len(pairs)
    assert -1 <= found.low <= found.high <= 1


def test_a_correlation_of_many_records_is_known_more_closely():
    def width(n):
        x = np.random.default_rng(0).normal(size=n)
        found = spearman(np.stack([x, x + np.random.default_rng(1).normal(size=n)], axis=1))
        assert found.low < found.value < found.high
        return found.high - found.low

    assert width(400) < width(40) / 2


def test_where_records_break_at_their_earliest_stubborn_token_the_correlation_is_one():
    found = patterns(many(60, 12, share_stubborn=0.1)).stubborn_vs_failure
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_the_patterns_count_what_the_records_say():
    tokens = [case for case, _ in REASONS.values()] + [TokenRecall((0.1,), (True,), (True,))]
    tokens = [case if case.unreachable else TokenRecall(**{**vars(case), "unreachable": ()}) for case in tokens]
    found = patterns(judge(tokens, 0.02))
    assert found.failures == 6
    assert found.reasons == dict.fromkeys(REASONS, 1)
    assert found.first_failures == {0: 1, 1: 5}
    assert (found.one_token_short, found.stubborn, found.unreachable, found.unavoidable) == (1, 5, 1, 1)


def test_without_decoding_or_reach_nothing_is_said_of_them():
    found = patterns(recall({"a": [0.1, 2.0]}, decoded=False))
    assert (found.failures, found.one_token_short, found.unreachable, found.unavoidable) == (None,) * 4
    assert (found.stubborn, found.stubborn_vs_failure, found.first_failures) == (1, None, {})
    assert (found.loss_bands[0].acc_token, found.loss_bands[0].exact) == (None, None)


@given(measurements())
def test_every_record_is_in_one_band_of_its_mean_loss(tokens):
    report = judge(tokens)
    bands = patterns(report).loss_bands
    assert sum(band.records for band in bands) == report.records
    for band in bands:
        inside = [
            item for item in report.items
            if band.low <= math.fsum(item.tokens.nll) / item.length < (math.inf if band.high is None else band.high)
        ]  # fmt: skip
        assert len(inside) == band.records
        assert band.ordered == pytest.approx(np.mean([loss < LN2 for item in inside for loss in item.tokens.nll]))
        if band.exact is not None:
            assert band.exact == sum(item.exact for item in inside)


def test_a_low_mean_loss_that_is_no_recall_shows_in_the_bands():
    band = patterns(recall({"a": [0.0] * 99 + [5.0]})).loss_bands[0]
    assert (band.low, band.high, band.records, band.exact, band.acc_token) == (0.03, 0.1, 1, 0, 0.99)
