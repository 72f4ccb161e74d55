"""What the frozen head allows: against plain searches, its proof, and read off real models."""

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memlaw.errors import MemlawError, ModelError
from memlaw.reach import FrozenHead, frozen_head, reach, reach_bounds, reachable_tokens


def random_head(vocab: int, width: int, seed: int, spread: float = 2.0, **kwargs: Any) -> FrozenHead:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return FrozenHead(
        weight=spread * draw(vocab, width) / math.sqrt(width),
        norm_weight=1 + 0.3 * draw(width),
        norm_bias=0.3 * draw(width) if kwargs.get("norm") == "layer" else None,
        bias=0.5 * draw(vocab) if kwargs.pop("with_bias", False) else None,
        **kwargs,
    )


def probabilities(head: FrozenHead, u: Tensor) -> Tensor:
    """[n, vocab]: the definition itself, written out, for unit vectors u [n, d]."""
    assert head.norm_weight is not None
    h = head.norm_weight * u * math.sqrt(u.shape[1])
    if head.norm_bias is not None:
        h = h + head.norm_bias
    z = h @ head.weight.T
    if head.bias is not None:
        z = z + head.bias
    z = z * head.scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z.softmax(dim=1)


def circle(points: int = 20_000) -> Tensor:
    angle = torch.arange(points) * (2 * math.pi / points)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def globe(points: int = 200_000) -> Tensor:
    """Points spread evenly over the sphere in three dimensions (Fibonacci lattice)."""
    k = torch.arange(points, dtype=torch.float64) + 0.5
    height = 1 - 2 * k / points
    angle = math.pi * (1 + math.sqrt(5)) * k
    flat = (1 - height.square()).sqrt()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], dim=1).float()


def centred_circle() -> Tensor:
    """Unit vectors of mean zero in three dimensions: all that LayerNorm lets through."""
    plane = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    return circle() @ (plane / plane.norm(dim=1, keepdim=True))


CASES = {
    "rms in two dimensions": (circle, {}, 2),
    "rms in three dimensions": (globe, {}, 3),
    "with a bias in the head": (circle, {"with_bias": True}, 2),
    "layer norm": (centred_circle, {"norm": "layer"}, 3),
    "layer norm with a bias in the head": (centred_circle, {"norm": "layer", "with_bias": True}, 3),
    "soft-capped": (circle, {"softcap": 2.0}, 2),
    "soft-capped in three dimensions": (globe, {"softcap": 3.0}, 3),
    "scaled logits": (circle, {"scale": 0.3}, 2),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", CASES)
def test_reach_is_the_largest_probability_a_search_of_the_whole_sphere_finds(case: str, seed: int) -> None:
    points, options, width = CASES[case]
    head = random_head(7, width, seed, **options)
    found = probabilities(head, points()).amax(dim=0)
    torch.testing.assert_close(reach(head), found, atol=3e-4, rtol=0)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(2, 24), vocab=st.integers(2, 40))
def test_no_direction_beats_the_proven_bound(norm: Any, seed: int, width: int, vocab: int) -> None:
    head = random_head(vocab, width, seed, norm=norm)
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(2000, width, generator=generator, dtype=torch.float64)
    if norm == "layer":
        u = u - u.mean(dim=1, keepdim=True)
    u = u / u.norm(dim=1, keepdim=True)
    bounds = reach_bounds(head)
    best = probabilities(head, u.float()).amax(dim=0)
    assert (best <= bounds.upper + 1e-5).all()
    assert (bounds.lower <= bounds.upper + 1e-5).all()


def test_a_reach_on_the_surface_is_proven_within_the_tolerance() -> None:
    # More rows than dimensions, far from the origin: the best u of each is on the sphere, and the
    # two bounds meet.
    head = random_head(300, 64, seed=0, spread=1.2)
    bounds = reach_bounds(head, tolerance=1e-4)
    assert (bounds.upper - bounds.lower).max() <= 1e-4
    assert bounds.lower.min() < 0.7 < 0.99 < bounds.lower.max()


def test_a_token_surrounded_by_others_is_proven_unreachable() -> None:
    # The fifth row is the mean of the other four, so one of them is always ahead of it.
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    bounds = reach_bounds(FrozenHead(5 * torch.cat([corners, corners.mean(dim=0, keepdim=True)])))
    assert bounds.upper[4] <= 0.5
    assert bounds.upper[4] == pytest.approx(0.2, abs=1e-3)  # u = 0 would make all five equal
    assert (bounds.lower[:4] > 0.99).all()


def test_twins_share_what_there_is() -> None:
    weight = torch.eye(4, 8) * 50
    weight[3] = weight[2]
    torch.testing.assert_close(reach(FrozenHead(weight)), torch.tensor([1.0, 1.0, 0.5, 0.5]), atol=1e-4, rtol=0)


def test_a_head_of_zeros_gives_every_token_the_same() -> None:
    for norm in ("rms", "layer"):
        head = FrozenHead(torch.zeros(4, 3), norm=norm)  # type: ignore[arg-type]
        torch.testing.assert_close(reach(head), torch.full((4,), 0.25))
        capped = FrozenHead(torch.zeros(4, 3), norm=norm, softcap=5.0)  # type: ignore[arg-type]
        torch.testing.assert_close(reach(capped), torch.full((4,), 0.25))


def test_a_soft_cap_limits_every_token() -> None:
    head = random_head(100, 64, seed=1, spread=50.0, softcap=1.0)
    bounds = reach_bounds(head)
    assert bounds.lower.max() < math.exp(1) / (math.exp(1) + 99 * math.exp(-1)) + 1e-6
    assert (bounds.upper == 1).all()


def test_chunks_and_subsets_do_not_change_the_answer() -> None:
    head = random_head(64, 16, seed=3)
    whole = reach(head)
    torch.testing.assert_close(reach(head, chunk_elements=64 * 5), whole, atol=1e-4, rtol=0)
    asked = [40, 2, 63, 2]
    torch.testing.assert_close(reach(head, asked), whole[asked], atol=1e-4, rtol=0)
    torch.testing.assert_close(reach(head, torch.tensor(asked)), whole[asked], atol=1e-4, rtol=0)
    assert reach(head, []).shape == (0,)


def test_reachable_tokens_keep_the_order_asked_for() -> None:
    head = random_head(64, 8, seed=4)
    values = reach(head)
    line = float(values.median())
    assert reachable_tokens(head, above=line).tolist() == (values > line).nonzero()[:, 0].tolist()
    backwards = list(range(63, -1, -1))
    kept = [token for token in backwards if values[token] > line]
    assert reachable_tokens(head, above=line, tokens=backwards).tolist() == kept


@pytest.mark.parametrize("ids", [[-1], [0, 64]])
def test_ids_beyond_the_head_are_refused(ids: list[int]) -> None:
    with pytest.raises(MemlawError, match="another tokenizer"):
        reach(random_head(64, 8, seed=5), ids)


SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SMALL | {"intermediate_size": 48}),
    "qwen3": ("Qwen3", SMALL | {"intermediate_size": 48, "head_dim": 16}),
    "gemma2": (
        "Gemma2",
        SMALL | {"intermediate_size": 48, "head_dim": 16, "final_logit_softcapping": 3.0},
    ),
    "olmo": ("Olmo", SMALL | {"intermediate_size": 48}),
    "gpt_neox": ("GPTNeoX", SMALL | {"intermediate_size": 48}),
    "gpt2": ("GPT2", {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2}),
    "phi": ("Phi", SMALL | {"intermediate_size": 48}),
    "cohere": ("Cohere", SMALL | {"intermediate_size": 48, "logit_scale": 0.5}),
    "granite": ("Granite", SMALL | {"intermediate_size": 48, "logits_scaling": 4.0}),
}


def tiny_model(family: str) -> Any:
    name, sizes = FAMILIES[family]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, num_key_value_heads=2, **ids)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # no gain is one and no bias zero, or an error in reading them would not show
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def final_norm_of(model: Any) -> nn.Module:
    names = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
    decoder = model.get_decoder()
    return next(getattr(decoder, name) for name in names if hasattr(decoder, name))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_read_off_a_model_gives_the_models_own_logits(family: str) -> None:
    model = tiny_model(family)
    head = frozen_head(model)
    seen: list[Tensor] = []
    hook = final_norm_of(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        wanted = model(input_ids=torch.arange(3, 15)[None]).logits[0]
    hook.remove()
    torch.testing.assert_close(head.logits(seen[0][0]), wanted, atol=2e-3, rtol=1e-3)
    x = seen[0][0]
    if head.norm == "layer":
        x = x - x.mean(dim=1, keepdim=True)
    u = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(probabilities(head, u), wanted.softmax(dim=1), atol=1e-4, rtol=1e-2)
    assert (wanted.softmax(dim=1).amax(dim=0) <= reach(head) + 1e-3).all()


def test_a_half_precision_model_can_be_read() -> None:
    head = frozen_head(tiny_model("gpt2").to(torch.bfloat16))
    assert head.weight.dtype == torch.bfloat16
    assert reach(head).dtype == torch.float32


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="causal language model"):
        frozen_head(tiny_model("llama").model)


def test_a_norm_of_another_kind_is_refused() -> None:
    model = tiny_model("llama")
    model.model.norm = nn.Tanh()
    with pytest.raises(ModelError, match="neither an RMSNorm nor a LayerNorm"):
        frozen_head(model)


def test_a_decoder_without_a_final_norm_is_refused() -> None:
    model = tiny_model("llama")
    model.model.norm = None
    with pytest.raises(ModelError, match="no final norm"):
        frozen_head(model)


def test_logits_that_something_else_changes_are_refused() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _, inputs, logits: 1.5 * logits)
    with pytest.raises(ModelError, match="Something else scales or shifts them"):
        frozen_head(model)
