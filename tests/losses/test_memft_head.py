"""memft_head_loss equals memft_loss on the logits, which it never computes as a whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import slow_head as reference_head
from helpers import tiny
from memlaw.core.errors import ConfigError
from memlaw.losses import IGNORED, WindowState, memft_head_loss, memft_loss
from memlaw.model.head import FrozenHead

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"softcap": 6.0, "scale": 1.7, "bias": torch.linspace(-1, 1, 23, dtype=torch.float64)},
}

SETTINGS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["sft", "ot", "sw", "curriculum"]),
        "margin": st.sampled_from([0.0, 0.1]),
        "rule": st.sampled_from(["zero", "fallback"]),
        "position": st.sampled_from([0.0, 2.0]),
        "focus": st.sampled_from([0.0, 1.0]),
    }
)


def case(seed: int = 0, recalled: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [2, 12, 9], a head [23, 9] and labels, some of which are the argmax with p near 1."""
    stream = torch.Generator().manual_seed(seed)
    weight = F.normalize(torch.randn(23, 9, generator=stream, dtype=torch.float64), dim=1) * 5
    labels = torch.randint(23, (2, 12), generator=stream)
    sure = torch.rand(2, 12, generator=stream) < recalled
    noise = torch.randn(2, 12, 9, generator=stream, dtype=torch.float64)
    hidden = torch.where(sure[..., None], 3 * weight[labels.roll(-1, dims=1)], noise)
    labels[torch.rand(2, 12, generator=stream) < 0.3] = IGNORED
    return hidden.requires_grad_(True), weight, labels


def both(
    hidden: Tensor, weight: Tensor, labels: Tensor, head: dict[str, Any], **options: Any
) -> list[tuple[Tensor, Tensor]]:
    """(loss, gradient of the hidden states) of memft_head_loss, and of memft_loss on the logits."""
    logits = reference_head.logits(FrozenHead(weight, **head), hidden)
    found = []
    for loss in (memft_head_loss(hidden, weight, labels, **head, **options), memft_loss(logits, labels, **options)):
        (gradient,) = torch.autograd.grad(3 * loss, hidden)
        found.append((loss.detach(), gradient))
    return found


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(seed=st.integers(0, 999), recalled=st.sampled_from([0.0, 0.5, 1.0]), chosen=SETTINGS)
def test_loss_and_gradient_are_those_of_the_logits(
    kind: str, seed: int, recalled: float, chosen: dict[str, Any]
) -> None:
    for reduction in ({}, {"num_items": 5}, {"reduction": "sum"}):
        (loss, gradient), (wanted, wanted_gradient) = both(*case(seed, recalled), KINDS[kind], **reduction, **chosen)
        torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-11, atol=1e-11)


@settings(deadline=None)
@given(seed=st.integers(0, 999), chosen=SETTINGS)
def test_packed_samples_and_their_windows_are_those_of_the_logits(seed: int, chosen: dict[str, Any]) -> None:
    hidden, weight, labels = case(seed)
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    ids = torch.tensor([[1] * 5 + [2] * 7, [3] * 5 + [4] * 7])
    states = WindowState(), WindowState()
    logits = hidden @ weight.T
    for _ in range(5):
        head_loss = memft_head_loss(
            hidden, weight, labels, position_ids=positions, sample_ids=ids, state=states[0], **chosen
        )
        loss = memft_loss(logits, labels, position_ids=positions, sample_ids=ids, state=states[1], **chosen)
        torch.testing.assert_close(head_loss, loss, rtol=1e-12, atol=1e-12)
    assert torch.equal(states[0].anchor, states[1].anchor)
    assert torch.equal(states[0].unmoved, states[1].unmoved)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "llama-tied"])
def test_it_trains_a_model_as_its_logits_do(family: str) -> None:
    model = tiny.model(family).double()
    model.requires_grad_(False)
    layer = next(module for name, module in model.named_modules() if name.endswith(("mlp", "mlp.c_fc", "down_proj")))
    (first, *_) = layer.parameters()
    first.requires_grad_(True)
    ids = torch.randint(3, tiny.VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = IGNORED
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    weight = model.get_output_embeddings().weight
    softcap = getattr(model.config, "final_logit_softcapping", None)
    ours = memft_head_loss(hidden, weight, labels, softcap=softcap)
    theirs = memft_loss(model(input_ids=ids, use_cache=False).logits, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    mine, wanted = (torch.autograd.grad(loss, first)[0] for loss in (ours, theirs))
    assert wanted.any()
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_states_give_a_loss_in_float32_and_a_gradient_of_their_own(dtype: torch.dtype) -> None:
    hidden, weight, labels = case()
    exact = memft_loss(hidden @ weight.T, labels, method="sft")
    (wanted,) = torch.autograd.grad(exact, hidden)
    states = hidden.detach().to(dtype).requires_grad_(True)
    loss = memft_head_loss(states, weight.to(dtype), labels, method="sft")
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    assert states.grad is not None
    assert states.grad.dtype == dtype
    assert (states.grad.double() - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("method", ["sft", "ot", "sw"])
@pytest.mark.parametrize("rule", ["zero", "fallback"])
def test_loss_and_gradient_of_a_batch_without_targets_are_zero(method: Any, rule: Any) -> None:
    hidden, weight, labels = case()
    loss = memft_head_loss(hidden, weight, torch.full_like(labels, IGNORED), method=method, rule=rule)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_loss_and_gradient_of_a_recalled_batch_are_exactly_zero() -> None:
    hidden, weight, labels = case(recalled=1.0)
    loss = memft_head_loss(hidden, weight, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


@settings(deadline=None)
@given(seed=st.integers(0, 99), chosen=SETTINGS)
def test_an_evaluation_gives_the_same_loss_and_moves_no_window(seed: int, chosen: dict[str, Any]) -> None:
    hidden, weight, labels = case(seed)
    state = WindowState()
    trained = memft_head_loss(hidden, weight, labels, sample_ids=["a", "b"], state=state, **chosen)
    before = state.state_dict()
    with torch.no_grad():
        seen = memft_head_loss(hidden, weight, labels, sample_ids=["a", "b"], state=state, **chosen)
    assert not seen.requires_grad
    torch.testing.assert_close(seen, trained.detach(), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[name], state.state_dict()[name]) for name in ("anchor", "unmoved"))


def test_invalid_arguments_are_refused_in_one_sentence() -> None:
    hidden, weight, labels = case()
    with pytest.raises(ConfigError, match="The head requires a gradient, and memft_head_loss gives it none: freeze it"):
        memft_head_loss(hidden, weight.requires_grad_(True), labels)
    weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="of width 9 in torch.float64 do not fit a head of width 9 in .*float32"):
        memft_head_loss(hidden, weight.float(), labels)
    with pytest.raises(ConfigError, match="of width 9 in torch.float64 do not fit a head of width 8"):
        memft_head_loss(hidden, weight[:, 1:], labels)
    with pytest.raises(ConfigError, match="Unknown reduction 'none'. Known: mean, sum."):
        memft_head_loss(hidden, weight, labels, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"hidden states of \[2, 12\] tokens for labels of \[2, 11\]"):
        memft_head_loss(hidden, weight, labels[:, 1:])
    with pytest.raises(ConfigError, match="Setting method is 'OT': choose sft, ot, sw or curriculum."):
        memft_head_loss(hidden, weight, labels, method="OT")  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [23, 50_000, -1, -101])
def test_a_label_outside_the_vocabulary_is_refused_by_its_value(label: int) -> None:
    hidden, weight, labels = case()
    labels[1, 2] = label
    with pytest.raises(ConfigError, match=rf"the id {label}, and the head has the ids 0 to 22: .* has 23 tokens"):
        memft_head_loss(hidden, weight, labels)
    with torch.no_grad(), pytest.raises(ConfigError, match=f"the id {label},"):
        memft_head_loss(hidden, weight, labels)
