"""What the failures of a memory set have in common: statistics over records, as in arXiv 2605.30260, section 4."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlaw.core.recall import LN2, RecallReport, RecordRecall
from memlaw.diagnosis.verdicts import position_counts, stubborn_positions

RESAMPLES = 2000
"""Bootstrap samples of an interval."""

LOSS_BANDS = (0.0, 0.01, 0.03, 0.1, 0.3, LN2, 1.0, 2.0, math.inf)
"""Limits of the bands of mean loss, in nats per token, by which records are grouped."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95% bootstrap interval over records."""

    value: float
    """From -1 to 1."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of records."""


@dataclass(frozen=True)
class LossBand:
    """Records whose mean loss, in nats per token, is in [low, high): how often a low loss did not mean recall."""

    low: float
    """Lower limit, inclusive."""
    high: float | None
    """Upper limit, exclusive; None if there is no limit."""
    records: int
    """Number of records in the band."""
    ordered: float
    """Share of their tokens with p > 1/2."""
    acc_token: float | None
    """Share of their tokens decoded correctly; None if not decoded."""
    exact: int | None
    """Number of them recalled verbatim; None if not decoded."""


@dataclass(frozen=True)
class Patterns:
    """Statistics over the records of one report; None without decoding, or where there is too little to go by."""

    failures: int | None
    """Records decoded wrongly."""
    reasons: dict[str, int]
    """Reason -> number of records, most common first."""
    first_failures: dict[int, int]
    """Position -> number of records whose decoding first goes wrong there."""
    stubborn_vs_failure: Correlation | None
    """Correlation of the earliest stubborn position with the first failure, over failures with a stubborn token."""
    one_token_short: int | None
    """Failures that correcting one token would have avoided."""
    stubborn: int
    """Tokens with p <= 1/2."""
    unreachable: int | None
    """Number of them that no adapter can bring to p > 1/2."""
    unavoidable: int | None
    """Failures whose first wrong token is one of these."""
    loss_bands: tuple[LossBand, ...]
    """Mean loss against recall, by ascending loss."""


def patterns(report: RecallReport) -> Patterns:
    """The statistics of `report`."""
    decoded = report.acc_em is not None
    failed = [item for item in report.items if item.exact is False]
    unreachable = [item.tokens.unreachable for item in report.items if item.tokens.unreachable is not None]
    known = len(unreachable) == report.records
    return Patterns(
        failures=len(failed) if decoded else None,
        reasons=dict(Counter(item.reason for item in report.items if item.reason is not None).most_common()),
        first_failures=position_counts(item.first_failure for item in report.items),
        stubborn_vs_failure=_stubborn_vs_failure(failed),
        one_token_short=sum(item.one_token_short is True for item in failed) if decoded else None,
        stubborn=sum(len(stubborn_positions(item)) for item in report.items),
        unreachable=sum(map(len, unreachable)) if known else None,
        unavoidable=sum(item.reason == "unreachable" for item in failed) if decoded and known else None,
        loss_bands=_loss_bands(report.items),
    )


def _stubborn_vs_failure(failed: Sequence[RecordRecall]) -> Correlation | None:
    pairs = [
        (item.earliest_stubborn, item.first_failure)
        for item in failed
        if item.earliest_stubborn is not None and item.first_failure is not None
    ]
    return spearman(np.array(pairs, dtype=np.float64).reshape(-1, 2))


def spearman(pairs: NDArray[np.float64], *, seed: int = 0) -> Correlation | None:
    """Spearman's correlation of the two columns of `pairs` [n, 2], with a seeded bootstrap interval.

    None for fewer than three pairs, or if a column is constant.
    """
    from scipy import stats

    if len(pairs) < 3 or (pairs == pairs[0]).all(axis=0).any():
        return None
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    ranks = stats.rankdata(pairs[drawn], axis=1)  # [resamples, n, 2]
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1).prod(axis=1)
    resampled = (centred.prod(axis=2).sum(axis=1)[spread > 0]) / np.sqrt(spread[spread > 0])
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Correlation(float(stats.spearmanr(pairs).statistic), float(low), float(high), len(pairs))


def _loss_bands(items: Sequence[RecordRecall]) -> tuple[LossBand, ...]:
    places = np.searchsorted(LOSS_BANDS, [-item.log_p / item.length for item in items], side="right") - 1
    groups = [
        [item for item, place in zip(items, places, strict=True) if place == band]
        for band in range(len(LOSS_BANDS) - 1)
    ]
    return tuple(_band(LOSS_BANDS[band], LOSS_BANDS[band + 1], group) for band, group in enumerate(groups) if group)


def _band(low: float, high: float, group: Sequence[RecordRecall]) -> LossBand:
    tokens = sum(item.length for item in group)
    hits = [sum(item.tokens.decoded) for item in group if item.tokens.decoded is not None]
    return LossBand(
        low=low,
        high=high if math.isfinite(high) else None,
        records=len(group),
        ordered=1 - sum(len(stubborn_positions(item)) for item in group) / tokens,
        acc_token=sum(hits) / tokens if hits else None,
        exact=sum(item.exact is True for item in group) if hits else None,
    )
