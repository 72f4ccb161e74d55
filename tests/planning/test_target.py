"""The target of a plan: read from text, and met at a rate of errors that counting failures confirms."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.slow_planning import missed
from memlaw.core.errors import ConfigError
from memlaw.planning import Target

SHARES = st.floats(0.01, 1)


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("all", Target(), "all facts"),
        ("1.0", Target(), "all facts"),
        ("100%", Target(), "all facts"),
        ("0.99", Target(0.99), "0.99 of the facts"),
        (" 99% ", Target(0.99), "0.99 of the facts"),
        (".5", Target(0.5), "0.5 of the facts"),
        ("99.5%", Target(0.995), "0.995 of the facts"),
        ("loss=0.1", Target(None, 0.1), "a mean loss of 0.1 nats"),
        ("loss=2e-3", Target(None, 0.002), "a mean loss of 0.002 nats"),
    ],
)
def test_a_target_is_a_word_a_share_or_a_loss(text: str, target: Target, said: str) -> None:
    assert Target.parse(text) == target
    assert str(target) == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Cannot read the target ''"),
        (
            "most",
            r"Cannot read the target 'most'\. Choose all, a share such as 0\.99 or 99%, or a mean loss in nats such as",
        ),
        ("nan", "Cannot read the target 'nan'"),
        ("-0.5", "Cannot read the target '-0.5'"),
        ("loss=10%", "Cannot read the target 'loss=10%'"),
        ("loss=", "Cannot read the target 'loss='"),
        ("0,99", "Cannot read the target '0,99'"),
        ("0", r"target is 0\.0, but a share must be above 0 and at most 1"),
        ("1.01", r"target is 1\.01"),
        ("101%", r"target is 1\.01"),
        ("99", r"target is 99\.0, but .*Choose all, a share such as 0\.99 or 99%"),
        ("loss=0", r"target is a loss of 0\.0 nats, but .*no finite adapter reaches 0"),
        ("loss=" + "9" * 400, "target is a loss of inf nats"),
    ],
)
def test_text_that_is_not_a_target_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Target.parse(text)


@given(st.text(max_size=12))
@settings(deadline=None)
def test_any_text_is_a_target_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        target = Target.parse(text)
        assert (target.share is None) != (target.loss is None)


@given(st.one_of(SHARES.map(lambda share: (share, None)), st.floats(1e-6, 20).map(lambda loss: (None, loss))))
@settings(deadline=None)
def test_a_target_that_is_written_is_read_back(parts: tuple[float | None, float | None]) -> None:
    share, loss = parts
    written = f"{share!r}" if loss is None else f"loss={loss!r}"
    assert Target.parse(written) == Target(share, loss)


def test_a_target_is_one_thing() -> None:
    for both_or_none in ((0.5, 0.1), (None, None)):
        with pytest.raises(ConfigError, match="A target is either a share or a mean loss"):
            Target(*both_or_none)
    with pytest.raises(ConfigError, match="target is nan"):
        Target(math.nan)


@given(
    records=st.integers(1, 300),
    failing=st.integers(0, 299),
    each=st.floats(1, 50),
    chance=st.floats(0.005, 0.995),
)
@settings(deadline=None)
def test_at_its_rate_a_share_is_missed_with_just_that_chance(
    records: int, failing: int, each: float, chance: float
) -> None:
    assume(failing < records)
    tokens = max(records, int(each * records))
    rate = float(Target(1 - failing / records).rate(records, tokens, chance))
    assert missed(1 - failing / records, records, tokens, rate) == pytest.approx(chance, abs=1e-6)


@given(records=st.integers(1, 10_000), each=st.integers(1, 100))
@settings(deadline=None)
def test_all_facts_come_back_as_likely_as_not_at_ln_2_errors_in_the_set(records: int, each: int) -> None:
    assert float(Target().rate(records, records * each)) == pytest.approx(math.log(2) / (records * each), rel=1e-9)


@given(one=SHARES, other=SHARES, records=st.integers(1, 2000), each=st.integers(1, 40), chance=st.floats(0.01, 0.99))
@settings(deadline=None)
def test_a_larger_share_never_allows_more_errors(
    one: float, other: float, records: int, each: int, chance: float
) -> None:
    less, more = (
        float(Target(share).rate(records, records * each, chance)) for share in sorted((one, other))
    )  # fmt: skip
    assert 0 < more <= less * (1 + 1e-9)


@given(share=SHARES, records=st.floats(0.1, 2000), factor=st.floats(1, 20))
@settings(deadline=None)
def test_more_records_of_one_length_never_allow_more_errors_a_token(
    share: float, records: float, factor: float
) -> None:
    few, many = (float(Target(share).rate(count, 10 * count)) for count in (records, factor * records))
    assert 0 < many <= few * (1 + 1e-9)


def test_of_very_many_records_the_share_alone_counts() -> None:
    assert float(Target(0.9).rate(10**6, 10**7)) == pytest.approx(-math.log(0.9) / 10, rel=1e-3)


def test_the_tiniest_share_of_a_part_of_a_record_is_still_a_number() -> None:
    rates = Target(1e-9).rate(0.01, 1.0, np.array([1e-6, 0.5, 1 - 1e-6]))
    assert np.all(np.isfinite(rates))
    assert np.all(np.diff(rates) >= 0)


def test_a_loss_is_no_share() -> None:
    with pytest.raises(ConfigError, match=r"target is a mean loss of 0\.1 nats, so no share of the records"):
        Target(None, 0.1).rate(1, 10)
