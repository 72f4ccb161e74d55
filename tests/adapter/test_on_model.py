from __future__ import annotations

import pytest
import torch

from helpers import packed, tiny
from memlaw.adapter.on_model import placement_on
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
