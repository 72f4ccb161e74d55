"""memft_loss and its sums, from logits and from token losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import slow_losses as reference
from memlaw.core.errors import ConfigError
from memlaw.core.recall import LN2
from memlaw.losses import IGNORED, MemFTSums, WindowState, memft_loss, memft_sums, memft_token_sums

VOCABULARY = 7

LABELS = torch.tensor([[-100, -100, 3, 4, 5], [-100, 1, 2, -100, -100]])

SETTINGS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["sft", "ot", "sw", "curriculum"]),
        "threshold": st.sampled_from([0.5, 0.2, 0.9]),
        "margin": st.sampled_from([0.0, 0.1]),
        "rule": st.sampled_from(["zero", "fallback"]),
        "position": st.sampled_from([0.0, 2.0]),
        "focus": st.sampled_from([0.0, 1.0, 1.5]),
    }
)


@dataclass(frozen=True)
class Sample:
    """Logits [time, vocab], float64, and labels [time], -100 at places that are not targets: one text in a row of its
    own.
    """

    logits: Tensor
    labels: Tensor

    @property
    def places(self) -> list[int]:
        """Where the target tokens are in the sequence."""
        return [t for t in range(1, len(self.labels)) if self.labels[t] != IGNORED]

    @property
    def tokens(self) -> list[tuple[list[float], int]]:
        """(logits, target) of each target token."""
        return [(self.logits[t - 1].tolist(), int(self.labels[t])) for t in self.places]

    def seen(self) -> list[reference.Token]:
        return [reference.token(*token) for token in self.tokens]


@st.composite
def samples(draw: st.DrawFn, most: int = 4) -> list[Sample]:
    """Texts of up to 9 tokens and a long turn of others; any of the 9 may be targets, some of them with p near 1."""
    found = []
    for _ in range(draw(st.integers(1, most))):
        time = draw(st.integers(1, 9))
        stream = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        labels = torch.randint(VOCABULARY, (time,), generator=stream)
        logits = 2 * torch.randn(time, VOCABULARY, generator=stream, dtype=torch.float64)
        sure = torch.rand(time, generator=stream) < draw(st.sampled_from([0.0, 0.5, 1.0]))
        logits = logits + 9 * sure[:, None] * F.one_hot(labels.roll(-1), VOCABULARY)
        labels[torch.rand(time, generator=stream) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = IGNORED
        turn, gap = draw(st.integers(0, time)), draw(st.sampled_from([0, 1, 30, 120]))
        other = torch.randn(gap, VOCABULARY, generator=stream, dtype=torch.float64)
        labels = torch.cat([labels[:turn], torch.full((gap,), IGNORED), labels[turn:]])
        found.append(Sample(torch.cat([logits[:turn], other, logits[turn:]]), labels))
    return found


def padded(texts: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """One text in each row: logits [batch, time, vocab] and labels [batch, time]."""
    time = max(len(text.labels) for text in texts)
    logits = [F.pad(text.logits, (0, 0, 0, time - len(text.labels)), value=3.0) for text in texts]
    labels = [F.pad(text.labels, (0, time - len(text.labels)), value=IGNORED) for text in texts]
    return torch.stack(logits), torch.stack(labels)


def packed(texts: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All texts in one row: logits, labels, position_ids and sample_ids."""
    positions = torch.cat([torch.arange(len(text.labels)) for text in texts])[None]
    ids = torch.cat([torch.full((len(text.labels),), number) for number, text in enumerate(texts)])[None]
    return torch.cat([t.logits for t in texts])[None], torch.cat([t.labels for t in texts])[None], positions, ids


def expected(texts: Sequence[Sample], windows: Sequence[reference.Window], **chosen: Any) -> tuple[float, list[float]]:
    """The loss, and all entries of its gradient in the logits of target tokens, sample by sample."""
    threshold, margin, rule = (chosen.pop(name) for name in ("threshold", "margin", "rule"))
    losses, weights, slopes = [], [], []
    for text, window in zip(texts, windows, strict=True):
        tokens = text.seen()
        if tokens:
            window.step(tokens, text.places)
        losses += [nll for nll, _ in tokens]
        described = {"critical": -math.log(threshold) - margin, "window": window, "places": text.places, **chosen}
        weights += reference.sample_weights(tokens, **described)
        slopes += [reference.token_gradient(*token) for token in text.tokens]
    value = reference.loss(losses, weights, rule)
    if rule == "fallback" and sum(weights) == 0:
        weights = [1.0] * len(weights)
    total = sum(weights) + 1e-8
    return value, [w / total * slope for w, row in zip(weights, slopes, strict=True) for slope in row]


def target_gradients(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of `logits` at the places that predict targets, flat; it must be zero elsewhere."""
    assert logits.grad is not None
    predicts = F.pad(labels[:, 1:], (0, 1), value=IGNORED) != IGNORED
    assert not logits.grad[~predicts].any()
    return logits.grad[predicts].flatten()


def close(found: Tensor, wanted: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(samples(), SETTINGS)
def test_loss_and_gradient_equal_the_formulas(texts: list[Sample], chosen: dict[str, Any]) -> None:
    logits, labels = padded(texts)
    loss = memft_loss(logits.requires_grad_(True), labels, **chosen)
    loss.backward()
    value, gradient = expected(texts, [reference.Window() for _ in texts], **chosen)
    close(loss, value)
    close(target_gradients(logits, labels), gradient)


@settings(deadline=None)
@given(st.lists(samples(most=1), min_size=2, max_size=3), st.integers(0, 99), SETTINGS)
def test_windows_follow_their_samples_through_shuffled_steps(
    parts: list[list[Sample]], seed: int, chosen: dict[str, Any]
) -> None:
    """Twelve steps on two or three texts in changing order; the model does not change, so the anchors stay."""
    texts = [text for part in parts for text in part]
    names = [f"text {number}" for number in range(len(texts))]
    windows = {name: reference.Window() for name in names}
    state = WindowState()
    stream = torch.Generator().manual_seed(seed)
    for _ in range(12):
        order = torch.randperm(len(texts), generator=stream).tolist()
        shuffled, ids = [texts[i] for i in order], [names[i] for i in order]
        loss = memft_loss(*padded(shuffled), sample_ids=ids, state=state, **chosen)
        close(loss, expected(shuffled, [windows[name] for name in ids], **chosen)[0])


@pytest.mark.parametrize("method", ["sft", "ot", "sw"])
@pytest.mark.parametrize("label", [8, 50_000, -1, -101])
def test_a_label_outside_the_vocabulary_is_refused_by_its_value(label: int, method: str) -> None:
    labels = LABELS.clone()
    labels[1, 2] = label
    message = rf"the id {label}, and the head has the ids 0 to 7: its vocabulary has 8 tokens"
    for loss in (memft_loss, memft_sums):
        with pytest.raises(ConfigError, match=message):
            loss(logits(), labels, method=method)  # type: ignore[operator]


def test_the_window_counts_places_in_the_sequence_not_targets() -> None:
    # Two answers of three tokens with a turn of 60 between them, and an error at the first: by the paper's formula the
    # second answer lies beyond the window of 50, although its targets are the third to the fifth after the error.
    labels = torch.full((1, 70), IGNORED)
    labels[0, 4:7] = labels[0, 67:70] = 1
    scores = torch.zeros(1, 70, VOCABULARY, dtype=torch.float64)
    scores[..., 2] = 40.0  # the target is never the argmax, and so unlikely that its sigmoid is 1
    weighted = memft_loss(scores, labels, method="sw", reduction="none")[0]
    expected = [1.0, math.exp(-1 / 20), math.exp(-2 / 20), 0.01, 0.01, 0.01]
    close(weighted[labels[0] != IGNORED] / 40, expected)


def test_padding_in_front_of_a_sample_does_not_move_its_anchor() -> None:
    state = WindowState()
    scores = torch.zeros(1, 70, VOCABULARY, dtype=torch.float64)
    scores[..., 2] = 40.0
    for start in (4, 9, 2, 30):
        labels = torch.full((1, 70), IGNORED)
        labels[0, start : start + 3] = 1
        memft_loss(scores.requires_grad_(True), labels, method="sw", sample_ids=["one"], state=state)
    assert state.unmoved.tolist() == [3]


def logits(scale: float = 3.0) -> Tensor:
    return scale * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_sft_is_cross_entropy_over_the_targets() -> None:
    wanted = F.cross_entropy(logits()[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(memft_loss(logits(), LABELS, method="sft"), wanted)


def test_only_threshold_is_the_mean_over_tokens_at_or_below_one_half() -> None:
    p = logits()[:, :-1].softmax(-1)
    values = [float(p[b, t, LABELS[b, t + 1]]) for b in range(2) for t in range(4) if LABELS[b, t + 1] != -100]
    below = [-math.log(v) for v in values if v <= 0.5]
    assert 0 < len(below) < len(values)
    assert float(memft_loss(logits(), LABELS)) == pytest.approx(sum(below) / len(below), rel=1e-6)


def test_tokens_above_one_half_get_no_gradient() -> None:
    scores = logits().requires_grad_(True)
    memft_loss(scores, LABELS).backward()
    p = logits()[:, :-1].softmax(-1)
    assert scores.grad is not None
    for b in range(2):
        for t in range(4):
            trained = LABELS[b, t + 1] != -100 and p[b, t, LABELS[b, t + 1]] <= 0.5
            assert bool(scores.grad[b, t].any()) == bool(trained)


def test_a_margin_keeps_training_a_token_until_it_is_that_far_below_ln_2() -> None:
    scores = torch.tensor([[[0.0, 0.5], [0.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[-100, 1]])
    nll = math.log(1 + math.exp(-0.5))  # 0.474: p = 0.62
    assert memft_loss(scores, labels) == 0
    assert memft_loss(scores, labels, margin=LN2 - nll - 1e-9) == 0
    close(memft_loss(scores, labels, margin=LN2 - nll + 1e-9), nll / (1 + 1e-8))


def sure(scale: float = 20.0) -> Tensor:
    """Logits under which every target of LABELS has p near 1."""
    return (scale * F.one_hot(LABELS.roll(-1, dims=1).clamp(min=0), 8)).requires_grad_(True)


@pytest.mark.parametrize("method", ["ot", "curriculum"])
@pytest.mark.parametrize("extra", [{}, {"position": 2.0, "focus": 1.0, "margin": 0.5}], ids=["plain", "modified"])
def test_loss_and_gradient_of_a_recalled_batch_are_exactly_zero(method: Any, extra: dict[str, float]) -> None:
    scores = sure()
    loss = memft_loss(scores, LABELS, method=method, **extra)  # type: ignore[arg-type]
    loss.backward()
    assert loss == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_fallback_gives_sft_once_nothing_is_left_and_only_then() -> None:
    torch.testing.assert_close(memft_loss(sure(), LABELS, rule="fallback"), memft_loss(sure(), LABELS, method="sft"))
    torch.testing.assert_close(memft_loss(logits(), LABELS, rule="fallback"), memft_loss(logits(), LABELS))


@pytest.mark.parametrize("method", ["sft", "ot", "sw", "curriculum"])
@pytest.mark.parametrize("rule", ["zero", "fallback"])
@pytest.mark.parametrize("time", [1, 5])
def test_loss_and_gradient_of_a_batch_without_targets_are_zero(method: Any, rule: Any, time: int) -> None:
    for reduction in ("mean", "sum"):
        scores = logits()[:, :time].clone().requires_grad_(True)
        labels = torch.full((2, time), IGNORED)
        loss = memft_loss(scores, labels, method=method, rule=rule, position=2.0, focus=1.0, reduction=reduction)  # type: ignore[arg-type]
        loss.backward()
        assert loss == 0
        assert scores.grad is not None
        assert torch.equal(scores.grad, torch.zeros_like(scores))
    assert memft_loss(logits()[:, :time], labels, method=method, num_items=0) == 0


@pytest.mark.parametrize("method", ["sft", "ot", "sw"])
def test_the_mean_over_one_target_token_is_its_loss(method: Any) -> None:
    labels = torch.full((2, 5), IGNORED)
    labels[1, 3] = int(logits()[1, 2].argmin())
    nll = F.cross_entropy(logits()[1, 2], labels[1, 3])
    torch.testing.assert_close(memft_loss(logits(), labels, method=method, position=2.0, focus=1.0), nll)


@pytest.mark.parametrize("method", ["sft", "ot", "sw"])
def test_a_diverged_run_does_not_look_like_a_recalled_one(method: Any) -> None:
    scores = sure().detach()
    scores[0, 2] = torch.nan
    assert memft_loss(scores, LABELS, method=method).isnan()


def test_an_unreachable_token_has_an_infinite_loss_and_a_finite_gradient() -> None:
    scores = logits()
    scores[0, 1, 3] = -torch.inf
    scores.requires_grad_(True)
    loss = memft_loss(scores, LABELS)
    loss.backward()
    assert loss == torch.inf
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["sft", "ot", "sw"])
def test_half_precision_logits_are_weighed_in_float32(dtype: torch.dtype, method: Any) -> None:
    scores = logits().to(dtype).requires_grad_(True)
    exact = scores.detach().float().requires_grad_(True)
    loss, wanted = (memft_loss(x, LABELS, method=method) for x in (scores, exact))
    loss.backward()
    wanted.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wanted)
    assert scores.grad is not None
    assert exact.grad is not None
    assert torch.equal(scores.grad, exact.grad.to(dtype))


@pytest.mark.parametrize("method", ["sft", "ot", "sw"])
def test_rows_that_only_pad_the_vocabulary_change_nothing(method: Any) -> None:
    wider = F.pad(logits(), (0, 24), value=-1e9)
    torch.testing.assert_close(memft_loss(wider, LABELS, method=method), memft_loss(logits(), LABELS, method=method))


@settings(deadline=None)
@given(samples(), SETTINGS)
def test_reductions_agree_with_each_other(texts: list[Sample], chosen: dict[str, Any]) -> None:
    scores, labels = padded(texts)
    each = memft_loss(scores, labels, reduction="none", **chosen)
    assert each.shape == labels.shape
    assert not each[labels == IGNORED].any()
    total = memft_loss(scores, labels, reduction="sum", **chosen)
    close(total, each.sum())
    close(memft_loss(scores, labels, num_items=7, **chosen), total / 7)
    close(memft_loss(scores, labels, num_items=torch.tensor(7), **chosen), total / 7)
    sums = memft_sums(scores, labels, **chosen)
    close(sums.mean(chosen["rule"]), memft_loss(scores, labels, **chosen))


@settings(deadline=None)
@given(samples(), SETTINGS)
def test_labels_may_be_shifted_already(texts: list[Sample], chosen: dict[str, Any]) -> None:
    scores, labels = padded(texts)
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    close(memft_loss(scores, shifted, shift=False, **chosen), memft_loss(scores, labels, **chosen))


@settings(deadline=None)
@given(samples(), SETTINGS)
def test_token_losses_without_logits_are_enough(texts: list[Sample], chosen: dict[str, Any]) -> None:
    scores, labels = padded(texts)
    ahead = F.pad(labels[:, 1:], (0, 1), value=0).clamp(min=0)
    nll = -scores.log_softmax(-1).gather(-1, ahead[..., None])[..., 0]
    hit = scores.argmax(-1) == ahead
    found = memft_token_sums(nll, hit, labels, **chosen)
    wanted = memft_sums(scores, labels, **chosen)
    for name in ("weighted", "weight", "plain", "tokens"):
        close(getattr(found, name), getattr(wanted, name))
    if chosen["method"] != "sw":
        close(memft_token_sums(nll, None, labels, **chosen).weighted, wanted.weighted)


def accumulated(parts: Sequence[MemFTSums], parameter: Tensor, rule: str) -> Tensor:
    """The gradient of a step that sees one part after the other, as the docstring of MemFTSums describes."""
    parameter.grad = None
    weight, tokens = 0.0, 0
    for part in parts:
        if weight == 0 and part.weight > 0:
            parameter.grad = None
        weight, tokens = weight + float(part.weight), tokens + int(part.tokens)
        numerator = part.plain if rule == "fallback" and weight == 0 else part.weighted
        numerator.backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None
    return parameter.grad / ((tokens if rule == "fallback" and weight == 0 else weight) + 1e-8)


@settings(deadline=None)
@given(samples(most=6), SETTINGS, st.sampled_from([1, 2, 3, 6]))
def test_the_gradient_of_a_step_is_the_same_however_it_is_split(
    texts: list[Sample], chosen: dict[str, Any], size: int
) -> None:
    """One number scales all logits: its gradient is the sum over all tokens."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    scores, labels = padded(texts)
    memft_loss(scale * scores, labels, **chosen).backward()
    whole = scale.grad
    assert whole is not None
    parts = [
        memft_sums(scale * scores[start : start + size], labels[start : start + size], **chosen)
        for start in range(0, len(texts), size)
    ]
    close(accumulated(parts, scale, chosen["rule"]), whole)
    close(sum(parts[1:], parts[0]).mean(chosen["rule"]), memft_loss(scores, labels, **chosen))


def test_a_step_falls_back_as_a_whole_or_not_at_all() -> None:
    scale = torch.ones((), requires_grad=True)
    recalled, learning = sure(4.0), logits()
    for order in ([recalled, learning], [learning, recalled], [recalled, learning, recalled], [recalled, recalled]):
        parts = [memft_sums(scale * scores.detach(), LABELS, rule="fallback") for scores in order]
        found = accumulated(parts, scale, "fallback")
        scale.grad = None
        whole = memft_loss(scale * torch.cat(order).detach(), LABELS.repeat(len(order), 1), rule="fallback")
        whole.backward()
        assert scale.grad is not None
        assert scale.grad != 0
        torch.testing.assert_close(found, scale.grad)


@settings(deadline=None)
@given(samples(), SETTINGS, st.sampled_from(["positions", "samples", "both"]))
def test_packing_does_not_change_loss_and_gradient(texts: list[Sample], chosen: dict[str, Any], borders: str) -> None:
    """The first token of a packed text has a label but is not predicted from its own text, so it is left out."""
    rows = padded(texts)
    rows[0].requires_grad_(True)
    alone = memft_loss(*rows, **chosen)
    alone.backward()
    scores, labels, positions, ids = packed(texts)
    scores.requires_grad_(True)
    given_ids = {"positions": {"position_ids": positions}, "samples": {"sample_ids": ids}}
    given_ids["both"] = given_ids["positions"] | given_ids["samples"]
    together = memft_loss(scores, labels, **given_ids[borders], **chosen)
    together.backward()
    close(together, alone)
    assert scores.grad is not None
    assert rows[0].grad is not None
    unpadded = [rows[0].grad[row, : len(text.labels)] for row, text in enumerate(texts)]
    close(scores.grad[0], torch.cat(unpadded))


@settings(deadline=None)
@given(samples(), SETTINGS)
def test_windows_survive_a_change_of_packing(texts: list[Sample], chosen: dict[str, Any]) -> None:
    rows, (scores, labels, positions, ids) = padded(texts), packed(texts)
    one, other = WindowState(), WindowState()
    for _ in range(5):
        alone = memft_loss(*rows, sample_ids=torch.arange(len(texts)), state=one, **chosen)
        together = memft_loss(scores, labels, position_ids=positions, sample_ids=ids, state=other, **chosen)
        close(together, alone)
    alone = memft_loss(*rows, sample_ids=list(range(len(texts))), state=other, **chosen)
    close(alone, memft_loss(*rows, sample_ids=torch.arange(len(texts)), state=one, **chosen))


def test_one_row_of_position_ids_serves_the_whole_batch() -> None:
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    found = memft_loss(logits(), LABELS, method="sft", position_ids=positions)
    labels = LABELS.clone()
    labels[:, 2] = IGNORED
    torch.testing.assert_close(found, memft_loss(logits(), labels, method="sft"))


def test_an_evaluation_does_not_move_windows() -> None:
    state = WindowState()
    settled = memft_loss(logits(), LABELS, method="sw", sample_ids=[0, 1], state=state)
    before = state.state_dict()
    with torch.no_grad():
        torch.testing.assert_close(memft_loss(logits(), LABELS, method="sw", sample_ids=[0, 1], state=state), settled)
    after = state.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in ("anchor", "unmoved"))
    memft_loss(logits(), LABELS, method="sw", sample_ids=[0, 1], state=state)
    assert not torch.equal(before["unmoved"], state.unmoved)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "otf"}, "Setting method is 'otf': choose sft, ot, sw or curriculum. Did you mean ot?"),
        ({"method": "rlhf"}, "Setting method is 'rlhf': choose sft, ot, sw or curriculum."),
        ({"rule": "fall-back"}, "Setting rule is 'fall-back': choose zero or fallback. Did you mean fallback?"),
        ({"treshold": 0.5}, "Unknown setting treshold: it would change nothing. Did you mean threshold? Known: "),
        ({"threshold": 1.0}, "threshold is 1.0: choose a probability between 0 and 1."),
        ({"threshold": 0}, "threshold is 0: choose a probability between 0 and 1."),
        ({"threshold": "0.5"}, "threshold is '0.5': choose a probability"),
        ({"threshold": math.nan}, "threshold is nan: choose a probability"),
        ({"margin": 0.7}, "margin is 0.7: choose nats from 0 to below 0.693, the loss at the threshold, since no"),
        ({"margin": 0.2, "threshold": 0.9}, "to below 0.105"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"position": -1.0}, "position is -1.0: choose a number above 0 (published: 2), or 0 to turn it off."),
        ({"position": True}, "position is True"),
        ({"focus": math.inf}, "focus is inf"),
        ({"reduction": "average"}, "Unknown reduction 'average'. Known: mean, sum, none."),
        ({"num_items": -3}, "num_items is -3: give the number of target tokens of the whole step."),
        ({"num_items": 3, "reduction": "sum"}, "reduction 'sum' divides by nothing"),
        ({"position_ids": torch.arange(4)[None]}, "position_ids have the shape [1, 4] and the labels [2, 5]"),
        ({"sample_ids": [1, 2, 3]}, "3 sample_ids for 2 rows: give one for each row, or one for each token."),
        ({"sample_ids": torch.zeros(2, 3)}, "sample_ids have the shape [2, 3] and the labels [2, 5]"),
        ({"method": "sw", "state": WindowState()}, "A WindowState needs sample_ids"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_invalid_arguments_are_refused_in_one_sentence(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        memft_loss(logits(), LABELS, **wrong)
    assert message in str(refused.value)


def test_logits_and_labels_of_different_shapes_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"logits of \[2, 5\] tokens for labels of \[2, 4\]: both are \[batch, time\]"
    ):
        memft_loss(logits(), LABELS[:, 1:])
    with pytest.raises(ConfigError, match=r"labels of \[5\]"):
        memft_loss(logits()[0], LABELS[0])
    with pytest.raises(ConfigError, match=r"nll of \[2, 4\] tokens for labels of \[2, 5\]"):
        memft_token_sums(torch.ones(2, 4), None, LABELS)


def test_the_sliding_window_needs_to_know_the_hits() -> None:
    with pytest.raises(ConfigError, match="needs to know the hits"):
        memft_token_sums(torch.ones(2, 5), None, LABELS, method="sw")
