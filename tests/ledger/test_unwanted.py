"""When a target that must not come back is gone, and the floors to which its tokens are trained."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlaw.core.facts import EncodedFact
from memlaw.core.recall import RecordRecall, TokenRecall
from memlaw.diagnosis.verdicts import judge
from memlaw.ledger.unwanted import FACTOR, judged, shared_tokens, with_floors

PROMPT = (7, 8, 9)


def fact(*target: int, prompt: tuple[int, ...] = PROMPT) -> EncodedFact:
    return EncodedFact("x", (*prompt, *target), len(prompt))


def tokens(*nll: float, top1: bool | tuple[bool, ...] = False, decoded: bool | tuple[bool, ...] = False) -> TokenRecall:
    def each(value: bool | tuple[bool, ...]) -> tuple[bool, ...]:
        return value if isinstance(value, tuple) else (value,) * len(nll)

    return TokenRecall(nll=nll, top1=each(top1), decoded=each(decoded))


def record(measured: TokenRecall) -> RecordRecall:
    return judge("x", measured, 0.0)


@pytest.mark.parametrize(
    ("old", "new", "shared"),
    [
        ((1, 2, 3), (1, 2, 4), 2),
        ((1, 2, 3), (4, 2, 3), 0),
        ((1, 2), (1, 2, 3), 2),  # the old target is the beginning of the new one
        ((1, 2, 3), (1, 2), 2),  # and the other way round
        ((1, 2, 0), (1, 2, 3, 0), 2),  # the same with an end of sequence
        ((1,), (2,), 0),
    ],
)
def test_the_shared_tokens_are_those_before_the_first_that_differs(
    old: tuple[int, ...], new: tuple[int, ...], shared: int
) -> None:
    elsewhere = fact(*old, prompt=(1, 1))
    assert shared_tokens([fact(*old), elsewhere], [fact(*new), fact(5, prompt=(3,))]) == (shared, 0)


def test_every_token_of_a_retracted_target_gets_the_loss_of_the_base_as_its_floor() -> None:
    alone = tokens(3.0, 2.5, 4.0, top1=(False, True, False))
    (row,) = with_floors([fact(1, 2, 3)], [alone], [])
    assert (row.target, row.prompt) == ((1, 2, 3), PROMPT)
    assert row.floor == (3.0, 2.5 - 0.5 * math.log(FACTOR) / 3, 4.0)


def test_only_what_a_changed_fact_does_not_share_with_its_new_target_is_forgotten() -> None:
    alone = tokens(3.0, 2.5, 4.0, 5.0)
    (row,) = with_floors([fact(1, 2, 3, 4)], [alone], [fact(1, 2, 5)])
    assert (row.prompt, row.target, row.floor) == ((*PROMPT, 1, 2), (3, 4), (4.0, 5.0))
    (longer,) = with_floors([fact(1, 2, 3, 4)], [alone], [fact(1, 2)])
    assert longer == row


def test_the_beginning_of_the_new_target_and_what_the_base_is_sure_of_need_no_row() -> None:
    assert with_floors([fact(1, 2)], [tokens(3.0, 2.0)], [fact(1, 2, 3)]) == ()
    assert with_floors([fact(1, 2)], [tokens(0.1, 0.5, top1=True)], []) == ()
    assert with_floors([], [], [fact(1)]) == ()


NLL = st.floats(0, 40)


@st.composite
def forgettings(draw: st.DrawFn) -> tuple[EncodedFact, TokenRecall, EncodedFact | None, tuple[float, ...]]:
    """A target, the base alone on it, what is held for its prompt, and losses after a training."""
    target = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=6)))
    nll = tuple(draw(NLL) for _ in target)
    top1 = tuple(loss < math.log(2) or draw(st.booleans()) for loss in nll)
    held = draw(st.none() | st.lists(st.integers(1, 3), min_size=1, max_size=6).map(lambda ids: fact(*ids)))
    after = tuple(draw(NLL) for _ in target)
    return fact(*target), tokens(*nll, top1=top1), held if held != fact(*target) else None, after


@given(forgettings())
def test_a_target_whose_tokens_have_reached_their_floors_is_no_more_probable_than_it_may_be(
    case: tuple[EncodedFact, TokenRecall, EncodedFact | None, tuple[float, ...]],
) -> None:
    """Whatever the base gives, and whatever is held now: what training ends with passes the gate's bound."""
    unwanted, alone, held, after = case
    wanted = [] if held is None else [held]
    (shared,) = shared_tokens([unwanted], wanted)
    rows = with_floors([unwanted], [alone], wanted)
    reached = list(after)
    for row in rows:
        assert row.ids == unwanted.ids
        assert row.prompt_length == unwanted.prompt_length + shared
        assert len(row.floor) == row.length
        reached[shared:] = [max(pair) for pair in zip(after[shared:], row.floor, strict=True)]
        for floor, nll, top1 in zip(row.floor, alone.nll[shared:], alone.top1[shared:], strict=True):
            assert floor == nll if not top1 else floor < nll
    found = judged(record(tokens(*reached)), record(alone), shared)
    assert found.rise <= 0.5 * math.log(FACTOR) + 1e-9
    assert found.holds


def test_a_target_is_gone_if_it_is_hardly_more_probable_than_under_the_base_and_not_decoded() -> None:
    alone = record(tokens(3.0, 4.0))
    almost, beyond = (record(tokens(3.0, 4.0 - math.log(FACTOR) + change)) for change in (0.01, -0.01))
    assert judged(almost, alone, 0).holds
    assert not judged(beyond, alone, 0).holds
    assert judged(beyond, alone, 0).log_p == pytest.approx(-7.0 + math.log(FACTOR) + 0.01)
    assert judged(beyond, alone, 0).log_p_base == -7.0
    decoded = record(tokens(3.0, 4.0, decoded=True))
    assert not judged(decoded, alone, 0).holds


def test_what_the_base_itself_gives_may_come_back() -> None:
    alone = record(tokens(0.6, 0.4, top1=True, decoded=True))
    assert judged(alone, alone, 0).holds
    surer = record(tokens(0.01, 0.01, top1=True, decoded=True))
    assert judged(surer, alone, 0).holds


def test_shared_tokens_do_not_count_against_a_changed_fact() -> None:
    alone = record(tokens(6.0, 5.0, 2.0))
    now = record(tokens(0.1, 0.1, 3.0, decoded=(True, True, False)))
    found = judged(now, alone, 2)
    assert (found.rise, found.holds) == (pytest.approx(-1.0), True)
    assert found.log_p > found.log_p_base + math.log(FACTOR)
    assert not judged(now, alone, 0).holds


def test_the_beginning_of_the_new_target_cannot_be_told_from_it() -> None:
    now = record(tokens(0.1, 0.1, decoded=True))
    assert judged(now, record(tokens(6.0, 5.0)), 2).holds
    assert not judged(now, record(tokens(6.0, 5.0)), 1).holds


def test_what_the_base_goes_on_with_after_the_new_target_may_follow_it() -> None:
    """Old "12", new "1": given the 1, the base itself gives the 2."""
    now, alone = record(tokens(0.1, 0.3, decoded=True)), record(tokens(6.0, 0.5, top1=(False, True)))
    assert judged(now, alone, 1).holds
    assert not judged(now, replace(alone, tokens=replace(alone.tokens, top1=(False, False))), 1).holds
