from __future__ import annotations

import torch

from helpers import packed, tiny
from memlaw.model.outline_from_module import outline_of_model


def test_packed_weights_in_memory_count_their_elements() -> None:
    quantised, ordinary = packed.model(), tiny.model("llama")
    quantised.model.layers[2].mlp.down_proj.weight.data = torch.zeros(768, 1, dtype=torch.uint8)  # as bitsandbytes does
    assert outline_of_model(quantised) == outline_of_model(ordinary)
