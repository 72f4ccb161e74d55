from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers import tiny
from helpers.fingerprints import everything
from memlaw.adapter.untouched import CopyOnWrite, untouched


def test_a_model_is_restored_from_every_kind_of_change_also_after_an_error() -> None:
    model = tiny.model("llama-tied")
    model.register_buffer("offset", torch.arange(4.0))
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    before = everything(model)
    with pytest.raises(ValueError, match="halfway"), untouched(model) as copy_on_write:
        damage(model, copy_on_write)
    assert everything(model) == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    handle.remove()
    assert not model.lm_head._forward_hooks


def damage(model: Any, copy_on_write: CopyOnWrite) -> None:
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[1].mlp
    attention.q_proj.weight.data = torch.zeros(1)
    attention.k_proj.weight = nn.Parameter(torch.zeros(2))
    attention.v_proj = nn.Identity()
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    model.config.architectures = ["Other"]
    model.generation_config.eos_token_id = [1, 2]
    model.peft_config = {}
    attention.layer_idx = 7
    mlp.forward = None
    mlp.__class__ = nn.Identity
    model.lm_head.register_forward_pre_hook(lambda *_: None)
    with torch.no_grad(), copy_on_write:
        model.lm_head.weight.add_(1)
        model.model.norm.weight.data[3:5].mul_(2)
        torch.zeros(32, 48, out=mlp.down_proj.weight.data)
        torch._foreach_add_([mlp.up_proj.weight], 1)
        model.offset.zero_()
    raise ValueError("halfway")


def test_only_what_is_written_to_is_copied() -> None:
    model = tiny.model("llama")
    with untouched(model) as copy_on_write, torch.no_grad():
        assert copy_on_write.copied_bytes == 0
        with copy_on_write:
            model(input_ids=torch.tensor([[5, 6]]))
            model.model.norm.weight.add_(1)
            model.model.norm.weight.add_(1)
        assert copy_on_write.copied_bytes == model.model.norm.weight.nbytes
