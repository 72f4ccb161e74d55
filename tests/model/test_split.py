from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from helpers import tiny
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.model.linear import use_onednn
from memlaw.model.split import Forward, FullForward, SiteForward, SplitForward, split


def ids(rows: int = 3, time: int = 12) -> torch.Tensor:
    return torch.randint(3, tiny.VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(1))


def quiet_split(model: torch.nn.Module, placement: Placement) -> Forward:
    """The forward chosen for a placement; falling back to the full forward would warn, and fail the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return split(model, placement.first_layer, placement.first_sites, ids(), placement.sites[-1].layer)


def adapted(placement: Placement) -> AdapterStack:
    """Three adapters away from zero."""
    stack = AdapterStack.start(
        placement.sites, [(2, TrainConfig(seed=k)) for k in range(3)], device="cpu", dtype="float32"
    )
    for _, b in stack.pairs:
        b.normal_(generator=torch.Generator().manual_seed(5))
    return stack


def output_projection(family: str) -> str:
    return {"gpt2": "c_proj", "gpt-neox": "dense_4h_to_h"}.get(family, "down_proj")


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("where", ["mlp", "output", "attention"])
def test_cached_equals_the_full_forward_for_copies_with_adapters(family: str, layer: int, where: str) -> None:
    model = tiny.model(family)
    attention = {"gpt2": "c_attn", "gpt-neox": "query_key_value", "phi3": "qkv_proj"}.get(family, "q_proj")
    module = {"mlp": "mlp", "output": output_projection(family), "attention": attention}[where]
    placement = placement_on(f"{module}@{layer}", model)
    forward, full, stack = quiet_split(model, placement), FullForward(model), adapted(placement)
    assert isinstance(forward, SplitForward)
    with torch.no_grad():
        cached = forward.cache(ids())
        with stack.attached(model):
            result, expected = forward(cached.repeat(3, 1, 1)), full(ids().repeat(3, 1))
    assert float((result - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2", "mistral-sliding", "phi3", "smollm3", "gpt-neox"])
def test_behind_the_only_adapted_module_nothing_of_its_layer_is_computed_again(family: str) -> None:
    model = tiny.model(family)
    placement = placement_on(f"{output_projection(family)}@2", model)
    forward = quiet_split(model, placement)
    assert isinstance(forward, SiteForward)
    cached = forward.cache(ids())
    calls: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        forward(cached)
    layer = placement.sites[0].path.split(".mlp.")[0]
    assert [name for name in calls if name.startswith(layer)] == [placement.sites[0].path]


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_a_norm_behind_the_module_makes_it_the_whole_layer_again(family: str) -> None:
    model = tiny.model(family)
    forward = quiet_split(model, placement_on("down_proj@2", model))
    assert type(forward) is SplitForward


def test_an_adapted_first_layer_still_caches_what_lies_before_the_module() -> None:
    model = tiny.model()
    assert isinstance(quiet_split(model, placement_on("down_proj@0", model)), SiteForward)
    assert isinstance(quiet_split(model, placement_on("q_proj,v_proj", model)), FullForward)


@pytest.mark.parametrize("family", ["qwen3", "mistral-sliding", "gpt2"])
def test_right_padding_needs_no_mask(family: str) -> None:
    model = tiny.model(family)
    padded = torch.cat([ids(1, 9), torch.zeros(1, 4, dtype=torch.long)], dim=1)
    with torch.no_grad():
        alone, among = FullForward(model)(ids(1, 9)), FullForward(model)(padded)[:, :9]
    torch.testing.assert_close(alone, among, rtol=1e-5, atol=1e-5)


def test_a_model_whose_layers_see_more_than_positions_falls_back_and_says_so() -> None:
    model = tiny.model()
    table = torch.randn(tiny.VOCABULARY, 32)

    class Peeking(type(model.model)):  # adds token information after the last layer
        def forward(self, input_ids=None, **kwargs):  # type: ignore[no-untyped-def]
            output = super().forward(input_ids=input_ids, **kwargs)
            output.last_hidden_state = output.last_hidden_state + table[input_ids]
            return output

    model.model.__class__ = Peeking
    with pytest.warns(UserWarning, match="another result when split at layer 2"):
        forward = split(model, 2, ["model.layers.2.mlp.down_proj"], ids(), 2)
    assert isinstance(forward, FullForward)


def test_an_architecture_without_a_known_norm_falls_back_and_says_so() -> None:
    model = tiny.model()
    del model.model.norm
    model.model.norm = lambda hidden: hidden  # a function, not a module
    with pytest.warns(UserWarning, match=r"cannot be split \(no final normalisation found\)"):
        assert isinstance(split(model, 2, ["model.layers.2.mlp.down_proj"], ids(), 2), FullForward)


def gradient_of(forward: Forward, stack: AdapterStack, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    cached = forward.cache(ids())
    tensors = [tensor.requires_grad_(True) for tensor in stack.tensors]
    with stack.attached(model):
        hidden = forward(cached.repeat(3, 1, 1))
    pull = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    (first, *_) = torch.autograd.grad(hidden, tensors, pull)
    return hidden.detach(), first


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2"])
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler; without one memlaw falls back")
def test_compiled_layers_give_values_and_gradients_of_the_model(family: str) -> None:
    model = tiny.model(family).requires_grad_(False)
    placement = placement_on(f"{output_projection(family)}@1", model)
    with use_onednn([model]):
        forward, stack = quiet_split(model, placement), adapted(placement)
        expected = gradient_of(forward, stack, model)
        forward.compile_above()
        results = [gradient_of(forward, stack, model) for _ in range(2)]
    assert isinstance(forward, SplitForward)
    assert forward.compiled is not None
    for pair in results:
        for ours, theirs in zip(pair, expected, strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_a_compiler_that_fails_causes_a_warning_and_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model().requires_grad_(False)
    placement = placement_on("down_proj@1", model)
    forward, stack = quiet_split(model, placement), adapted(placement)
    expected = gradient_of(forward, stack, model)

    def broken(*_args: object) -> None:
        raise RuntimeError("no C++ compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", lambda function, mode: broken)
    forward.compile_above()
    with pytest.warns(UserWarning, match=r"cannot be compiled \(no C\+\+ compiler\): running them as they are"):
        result = gradient_of(forward, stack, model)
    again = gradient_of(forward, stack, model)
    for run in (result, again):
        assert all(torch.equal(a, b) for a, b in zip(run, expected, strict=True))


def test_a_model_that_runs_whole_says_that_nothing_is_compiled() -> None:
    model = tiny.model()
    with pytest.warns(UserWarning, match="none of it is compiled"):
        FullForward(model).compile_above()
