from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from helpers import packed, tiny
from helpers.adapters import trained
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach, save
from memlaw.adapter.placement import Placement
from memlaw.core.errors import AdapterError


@pytest.mark.parametrize("text", ["down_proj@1", "down_proj@2", "mlp@1", "all-linear", "gate_proj,q_proj@2"])
def test_a_module_in_two_layers_cannot_be_adapted(text: str) -> None:
    model = tiny.model()
    model.model.layers[2].mlp = model.model.layers[1].mlp
    with pytest.raises(AdapterError, match=r"layers\.\d\.mlp\S* and \S*layers\.\d\.mlp\S* are the same module"):
        placement_on(text, model)
    assert placement_on("down_proj@0+3", model).first_layer == 0
    assert placement_on("q_proj@1+2", model).first_layer == 1


def test_a_repeated_layer_or_a_module_with_two_names_cannot_be_adapted() -> None:
    model = tiny.model()
    model.model.layers[2] = model.model.layers[1]
    with pytest.raises(AdapterError, match="copy.deepcopy"):
        placement_on("q_proj@2", model)
    model = tiny.model()
    model.head_start = model.model.layers[0].mlp.up_proj
    with pytest.raises(AdapterError, match=r"layers\.0\.mlp\.up_proj and head_start are the same"):
        placement_on("up_proj@0", model)


def test_packed_weights_are_adapted_by_the_shape_of_the_module_not_of_the_bytes() -> None:
    quantised, ordinary = packed.model(), tiny.model("llama")
    quantised.model.layers[2].mlp.down_proj.weight.data = torch.zeros(768, 1, dtype=torch.uint8)  # as bitsandbytes does
    for text in (None, "mlp@1", "all-linear"):
        assert placement_on(text, quantised) == placement_on(text, ordinary)


def adapted_by_peft(model: Any, placement: Placement) -> set[str]:
    tuned = get_peft_model(model, LoraConfig(**placement.lora_config(2)))
    return {
        name.removeprefix("base_model.model.") for name, module in tuned.named_modules() if hasattr(module, "lora_A")
    }


MODELS = {
    "qwen3": tiny.model,
    "gpt-neox": partial(tiny.model, "gpt-neox"),
    "llava": tiny.seeing,
    "mixtral": partial(tiny.mixture, "Mixtral"),
    "qwen2-moe": partial(tiny.mixture, "Qwen2Moe"),
    "phimoe": partial(tiny.mixture, "Phimoe"),
}
ATTENTION = ["q_proj", "q_proj,v_proj@1", "all-linear", "all-linear@1-2"]
PLACES = [
    *[(name, text) for name in MODELS if name != "gpt-neox" for text in ATTENTION],
    ("qwen3", "down_proj@2"), ("llava", "down_proj@2"), ("qwen2-moe", "down_proj@2"),
    ("gpt-neox", "all-linear"), ("gpt-neox", "all-linear@1"), ("gpt-neox", "query_key_value@1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), PLACES)
def test_peft_adapts_exactly_the_sites(name: str, text: str) -> None:
    model = MODELS[name]()
    placement = placement_on(text, model)
    assert adapted_by_peft(model, placement) == {site.path for site in placement.sites}


def test_modules_are_named_in_full_only_where_short_names_match_others() -> None:
    assert placement_on("q_proj@1", tiny.model()).lora_config(2)["target_modules"] == ["q_proj"]
    assert placement_on("all-linear", tiny.model()).lora_config(2)["target_modules"] == "all-linear"
    config = placement_on("q_proj@1", tiny.seeing()).lora_config(2)
    assert config["target_modules"] == ["model.language_model.layers.1.self_attn.q_proj"]
    assert config["layers_to_transform"] is None
    assert placement_on("down_proj@1", tiny.seeing()).lora_config(2)["target_modules"] == ["down_proj"]


def test_all_linear_leaves_out_routers_gates_and_fused_experts_and_says_so() -> None:
    fused = "mlp.experts.down_proj, mlp.experts.gate_up_proj"
    for kind, left_out in [
        ("Qwen2Moe", f"mlp.shared_expert_gate, {fused}"), ("Phimoe", f"mlp.router, {fused}"), ("Mixtral", fused)
    ]:  # fmt: skip
        placement = placement_on("all-linear", tiny.mixture(kind))
        assert f"all-linear leaves out {left_out}: routers, gates with one output and fused" in placement.caution
        assert placement.max_rank == 16
    assert "leaves out" not in placement_on("all-linear", tiny.model()).caution
    assert placement_on("shared_expert_gate@1", tiny.mixture("Qwen2Moe")).max_rank == 1


@pytest.mark.parametrize("text", [None, "down_proj@1", "experts"])
def test_fused_experts_are_told_with_what_can_be_adapted(text: str | None) -> None:
    expected = (
        r"Its experts are fused into 3-D tensors \(mlp\.experts\.down_proj, mlp\.experts\.gate_up_proj\), which memlaw "
        r"cannot adapt; .*mlp@LAYER adapts a whole MLP block.*Its modules: k_proj, mlp, o_proj, q_proj, v_proj"
    )
    with pytest.raises(AdapterError, match=expected):
        placement_on(text, tiny.mixture("Mixtral"))


def test_an_adapter_beside_a_vision_tower_gives_peft_the_logits_it_gave(tmp_path: Path) -> None:
    base = tiny.wrap(tiny.seeing(), tiny.tokenizer())
    placement, ids = placement_on("q_proj@1", base.model), torch.tensor([[5, 6, 7, 8]])
    stack = trained(placement)
    with stack.attached(base.model), torch.no_grad():
        expected = base.model(input_ids=ids, use_cache=False).logits
    save(stack, placement, base, tmp_path / "a")
    tuned = PeftModel.from_pretrained(tiny.seeing(), str(tmp_path / "a")).eval()
    with torch.no_grad():
        torch.testing.assert_close(tuned(input_ids=ids, use_cache=False).logits, expected)
    with attach(base, tmp_path / "a"), torch.no_grad():
        torch.testing.assert_close(base.model(input_ids=ids, use_cache=False).logits, expected)
