"""The sliding window: anchor, width, floor and patience, in one pass of chunks and over many steps."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import slow_losses as reference
from memlaw.core.errors import ConfigError
from memlaw.losses import WindowPass, WindowState, pointwise_weights
from memlaw.losses.head_pass import Chunk, head_pass
from memlaw.model.head import FrozenHead

HUGE = 1e3
"""A loss whose sigmoid is exactly 1, so that the weight is the factor of the window."""


def tokens(hits: str) -> tuple[Tensor, Tensor]:
    """nll and hit of one sample: `.` a hit, `x` an error; each with base weight 1."""
    return torch.full((len(hits),), HUGE, dtype=torch.float64), torch.tensor([c == "." for c in hits])


def look(state: WindowState, hits: str, slot: int = 0) -> list[float]:
    """The weights of one sample at one step."""
    nll, hit = tokens(hits)
    window = WindowPass(state, torch.full_like(hit, slot, dtype=torch.long), torch.arange(len(hits)))
    weights = window(nll, hit, slice(0, len(hits)))
    window.commit()
    return list(weights.tolist())


def width(weights: list[float], anchor: int) -> int:
    """Number of tokens inside the window, from the anchor on."""
    return sum(weight != 0.01 for weight in weights[anchor:])


def test_the_base_weight_is_a_sigmoid_at_ln_2() -> None:
    nll = torch.tensor([0.0, math.log(2), math.log(2) + 0.1, math.log(2) - 0.1, 50.0], dtype=torch.float64)
    found = WindowPass(WindowState(1), torch.zeros(5, dtype=torch.long), torch.arange(5))(
        nll, torch.ones(5, dtype=torch.bool), slice(0, 5)
    )
    wanted = [1 / (1 + 1024), 0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 1.0]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_margin_moves_the_sigmoid() -> None:
    nll = torch.tensor([0.5, 0.5], dtype=torch.float64)
    slots = torch.zeros(2, dtype=torch.long)
    for critical in (0.5, torch.full((2,), 0.5)):
        window = WindowPass(WindowState(1), slots, torch.arange(2), critical=critical)
        assert window(nll, nll > 0, slice(0, 2)).tolist() == [0.5, 0.5]


def test_weights_decay_after_the_first_error_and_not_before_it() -> None:
    assert look(WindowState(1), "..x.x") == pytest.approx([1, 1, 1, math.exp(-1 / 20), math.exp(-2 / 20)], rel=1e-12)


def test_without_an_error_nothing_is_discounted() -> None:
    assert look(WindowState(1), "." * 200) == [1.0] * 200


def test_beyond_fifty_tokens_weights_are_at_the_floor() -> None:
    weights = look(WindowState(1), ".." + "x" * 60)
    assert weights[:3] == [1, 1, 1]
    assert weights[2 + 49] == pytest.approx(math.exp(-49 / 20), rel=1e-12)
    assert weights[2 + 50 :] == [0.01] * 10


def test_an_anchor_that_stays_three_steps_widens_the_window_at_each_step_it_still_stays() -> None:
    state, hits = WindowState(1), "..x" + "." * 300
    widths = [width(look(state, hits), 2) for _ in range(12)]
    #         arrives  1   2   3   4    5    6    7    8    at most 4 * 50
    assert widths == [50, 50, 50, 75, 100, 125, 150, 175, 200, 200, 200, 200]


@pytest.mark.parametrize("moved", ["...x", ".x..", "...."], ids=["forward", "back", "no error"])
def test_any_move_resets_the_window(moved: str) -> None:
    state, hits, other = WindowState(1), "..x." + "." * 300, moved + "." * 300
    for _ in range(6):
        look(state, hits)
    weights, anchor = look(state, other), moved.find("x")
    assert weights == [1.0] * 304 if anchor < 0 else width(weights, anchor) == 50
    assert [width(look(state, hits), 2) for _ in range(4)] == [50, 50, 50, 75]


def test_errors_after_the_anchor_do_not_move_it() -> None:
    state = WindowState(1)
    seen = [width(look(state, "x" + tail + "." * 300), 0) for tail in ("...", "xxx", ".x.", "x..")]
    assert seen == [50, 50, 50, 75]


def test_each_sample_has_a_window_of_its_own() -> None:
    state, hits = WindowState(2), "x" + "." * 300
    for _ in range(4):
        first = look(state, hits, slot=0)
    assert width(first, 0) == 75
    assert width(look(state, hits, slot=1), 0) == 50
    assert state.anchor.tolist() == [0, 0]
    assert state.unmoved.tolist() == [3, 0]


def test_weighing_without_committing_is_not_a_step() -> None:
    state = WindowState(1)
    look(state, "x..")
    nll, hit = tokens(".x.")
    WindowPass(state, torch.zeros(3, dtype=torch.long), torch.arange(3))(nll, hit, slice(0, 3))
    assert state.anchor.tolist() == [0]


def test_a_sample_that_occurs_twice_in_a_step_makes_one_step() -> None:
    state = WindowState(1)
    look(state, "x..")
    nll, hit = tokens("x..x..")
    window = WindowPass(state, torch.zeros(6, dtype=torch.long), torch.arange(3).repeat(2))
    weights = window(nll, hit, slice(0, 6))
    window.commit()
    assert weights[:3].tolist() == weights[3:].tolist()
    assert state.unmoved.tolist() == [1]


def test_tokens_without_a_slot_have_weight_one_and_change_no_state() -> None:
    state = WindowState(1)
    nll, hit = tokens("xx.x..")
    slots = torch.tensor([-1, -1, -1, 0, 0, 0])
    window = WindowPass(state, slots, torch.tensor([0, 1, 2, 0, 1, 2]))
    weights = window(0 * nll, hit, slice(0, 6)).tolist()
    window.commit()
    base = 1 / (1 + 1024)
    assert weights == pytest.approx([1, 1, 1, base, base * math.exp(-1 / 20), base * math.exp(-2 / 20)], rel=1e-12)
    assert state.anchor.tolist() == [0]
    nothing = WindowPass(state, slots[:3], torch.arange(3))
    assert nothing(nll[:3], hit[:3], slice(0, 3)).tolist() == [1, 1, 1]
    nothing.commit()
    assert state.anchor.tolist() == [0]


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[list[list[reference.Token]]]]:
    """Lengths of some samples, and the tokens of each at a few successive steps, with any errors and losses."""
    lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=4))
    stream = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rate = draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    keep = draw(st.booleans())

    def sample(length: int) -> list[reference.Token]:
        nll = 2 * torch.rand(length, generator=stream, dtype=torch.float64)
        hit = torch.rand(length, generator=stream) >= rate
        return list(zip(nll.tolist(), hit.tolist(), strict=True))

    first = [sample(length) for length in lengths]
    return lengths, [first if keep else [sample(length) for length in lengths] for _ in range(draw(st.integers(1, 6)))]


@settings(deadline=None)
@given(steps(), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_weights_equal_the_definition_however_the_pass_is_cut(
    drawn: tuple[list[int], list[list[list[reference.Token]]]], cuts: list[int]
) -> None:
    lengths, seen = drawn
    state, windows = WindowState(len(lengths)), [reference.Window() for _ in lengths]
    slots = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    for samples in seen:
        wanted: list[float] = []
        for window, sample in zip(windows, samples, strict=True):
            window.step(sample)
            wanted += reference.sample_weights(sample, method="sw", window=window)
        flat = [token for sample in samples for token in sample]
        nll = torch.tensor([loss for loss, _ in flat], dtype=torch.float64)
        hit = torch.tensor([good for _, good in flat])
        passed, start, turn = WindowPass(state, slots, positions), 0, 0
        weights = []
        while start < len(flat):
            rows = slice(start, min(start + cuts[turn % len(cuts)], len(flat)))
            weights.append(passed(nll[rows], hit[rows], rows))
            start, turn = rows.stop, turn + 1
        passed.commit()
        torch.testing.assert_close(torch.cat(weights), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert state.anchor.tolist() == [-1 if window.anchor is None else window.anchor for window in windows]
    assert state.unmoved.tolist() == [window.stood for window in windows]


@pytest.mark.parametrize("chunk", [Chunk(rows=7, columns=5, numbers=64), None], ids=["small", "whole"])
def test_it_weighs_what_one_pass_through_the_head_finds(chunk: Chunk | None) -> None:
    """Two samples under sw with one under ot between them, as in a stack of adapters with different methods."""
    stream = torch.Generator().manual_seed(3)
    head = FrozenHead(3 * torch.randn(23, 9, generator=stream, dtype=torch.float64))
    hidden = torch.randn(90, 9, generator=stream, dtype=torch.float64)
    targets = (hidden @ head.weight.T).argmax(-1)
    targets[::11] = 4
    slots, positions = torch.tensor([0, -1, 1]).repeat_interleave(30), torch.arange(30).repeat(3)
    window = WindowPass(WindowState(2), slots, positions)

    def weigh(nll: Tensor, hit: Tensor, rows: slice) -> Tensor:
        return pointwise_weights(nll, every=slots[rows] >= 0, critical=math.log(2)) * window(nll, hit, rows)

    found = head_pass(head, hidden, targets, weigh, chunk=chunk)
    wanted: list[float] = []
    for start, method in ((0, "sw"), (30, "ot"), (60, "sw")):
        seen = list(zip(found.nll[start : start + 30].tolist(), found.hit[start : start + 30].tolist(), strict=True))
        one = reference.Window()
        one.step(seen)
        wanted += reference.sample_weights(seen, method=method, window=one)
    torch.testing.assert_close(found.weights, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)


def test_ids_of_any_kind_have_slots_that_stay() -> None:
    state = WindowState()
    assert state.slots(["b", 7, ("a", 1), "b"]).tolist() == [0, 1, 2, 0]
    assert state.slots([("a", 1), "new"]).tolist() == [2, 3]
    assert len(state) == 4
    assert WindowState(3).slots(["first"]).tolist() == [3]
    assert state.slots([]).tolist() == []


def trained() -> WindowState:
    state = WindowState(1)
    slot = int(state.slots(["name"])[0])
    for _ in range(5):
        look(state, "..x" + "." * 300, slot=slot)
    look(state, ".x.", slot=0)
    return state


def test_a_state_is_restored_from_a_checkpoint() -> None:
    file = io.BytesIO()
    torch.save(trained().state_dict(), file)
    file.seek(0)
    state = WindowState()
    state.load_state_dict(torch.load(file, weights_only=True))
    assert state.slots(["name", "other"]).tolist() == [1, 2]
    assert state.anchor.tolist() == [1, 2, -1]
    assert width(look(state, "..x" + "." * 300, slot=1), 2) == 125


def test_tensors_alone_are_enough_if_slots_are_numbers() -> None:
    kept = trained().state_dict()
    del kept["ids"]
    state = WindowState(2)
    state.load_state_dict(kept)
    assert state.anchor.tolist() == [1, 2]
    look(state, "x..", slot=0)
    assert kept["anchor"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"unmoved": torch.zeros(1)}, "'anchor' is missing"),
        ({"anchor": torch.zeros(3), "unmoved": torch.zeros(2)}, "[3] anchors, [2] counts and 0 sample ids"),
        ({"anchor": torch.zeros(1), "unmoved": torch.zeros(1), "ids": ["a", "b"]}, "and 2 sample ids. Start from a"),
    ],
    ids=["missing", "shapes", "ids"],
)
def test_a_malformed_state_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        WindowState().load_state_dict(wrong)
    assert message in str(refused.value)
