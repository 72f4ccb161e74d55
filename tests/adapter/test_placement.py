from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import tiny
from memlaw.adapter.placement import resolve
from memlaw.core.errors import AdapterError
from memlaw.model.outline_from_module import outline_of_model

OUTLINE = outline_of_model(tiny.model())


@pytest.mark.parametrize(
    ("text", "canonical", "layers", "modules"),
    [
        (None, "down_proj@2", {2}, {"down_proj"}),
        ("mlp@1", "mlp@1", {1}, {"mlp"}),
        ("down_proj@3", "down_proj@3", {3}, {"down_proj"}),
        ("q_proj,v_proj", "q_proj,v_proj", {0, 1, 2, 3}, {"q_proj", "v_proj"}),
        ("up_proj@1-3", "up_proj@1+2+3", {1, 2, 3}, {"up_proj"}),
        ("up_proj@0+3", "up_proj@0+3", {0, 3}, {"up_proj"}),
        (
            "all-linear",
            "all-linear",
            {0, 1, 2, 3},
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
    ],
)
def test_placements_in_every_spelling(text: str | None, canonical: str, layers: set[int], modules: set[str]) -> None:
    placement = resolve(text, OUTLINE)
    assert str(placement) == canonical
    assert {site.layer for site in placement.sites} == layers
    assert {site.path.rpartition(".")[2] for site in placement.sites} == modules
    assert resolve(canonical, OUTLINE) == placement


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_a_default_placement_two_thirds_up(family: str) -> None:
    assert resolve(None, outline_of_model(tiny.model(family))).first_layer == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dwon_proj@2", r"no module 'dwon_proj' to adapt\. Did you mean down_proj"),
        ("down_proj@9", r"Layer 9 does not exist: the model has 4 layers, 0 to 3"),
        ("down_proj@x", "not of the form 4, 2-5 or 1\\+4"),
        ("down_proj@", "not of the form"),
        ("mlp", "needs a layer from 0 to 3, such as mlp@2"),
        ("mlp,q_proj@1", "cannot be combined with other modules"),
        ("", "no module ''"),
    ],
)
def test_a_placement_that_the_model_lacks_is_explained(text: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        resolve(text, OUTLINE)


@given(st.text(alphabet="mlpq_roj,@+-0123456789 x", max_size=20))
def test_any_text_is_a_placement_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(AdapterError):
        assert resolve(text, OUTLINE).sites


def test_a_placement_in_layer_0_warns_of_its_cost() -> None:
    assert "every step runs the whole model" in resolve("all-linear", OUTLINE).caution
    assert "q_proj,v_proj adapts layer 0" in resolve("q_proj,v_proj", OUTLINE).caution
    assert not resolve("down_proj@0", OUTLINE).caution  # what lies before its one module is computed once
    assert not resolve("q_proj,v_proj@1-3", OUTLINE).caution


def test_a_model_without_a_known_output_projection_has_no_default_and_lists_its_modules() -> None:
    renamed = tuple(replace(site, path=site.path.replace("down_proj", "out")) for site in OUTLINE.linear)
    with pytest.raises(
        AdapterError,
        match=r"tiny has none of .*Choose one with --placement.*Its modules: gate_proj, k_proj, mlp, o_proj, out,",
    ):
        resolve(None, replace(OUTLINE, name="tiny", linear=renamed))
    assert resolve("out@1", replace(OUTLINE, linear=renamed)).max_rank == 32


def test_the_largest_rank_is_the_smallest_dimension_of_a_site() -> None:
    placement = resolve("k_proj,down_proj@1", OUTLINE)
    placement.check_rank(16)
    with pytest.raises(
        AdapterError,
        match=r"Rank 17 is above 16, the smaller dimension of model\.layers\.1\.self_attn\.k_proj \(32 -> 16\)",
    ):
        placement.check_rank(17)
    with pytest.raises(AdapterError, match="Rank must be at least 1, not 0"):
        placement.check_rank(0)


def test_the_configuration_for_peft_is_ready_to_paste() -> None:
    config = resolve("q_proj,v_proj@1-2", OUTLINE).lora_config(4, scale=2.0)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["q_proj", "v_proj"])
    assert (config["layers_to_transform"], config["fan_in_fan_out"]) == ([1, 2], False)
    assert resolve("c_proj@1", outline_of_model(tiny.model("gpt2"))).lora_config(4)["fan_in_fan_out"]
    with pytest.raises(AdapterError, match="PEFT cannot express the parallel adapter mlp@1"):
        resolve("mlp@1", OUTLINE).lora_config(4)
