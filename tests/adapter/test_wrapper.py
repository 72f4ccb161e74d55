from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from helpers import peft_types, tiny
from memlaw.adapter.info import AdapterFaultError
from memlaw.adapter.wrapper import refuse_effects_outside, refuse_peft_model
from memlaw.integrations.recall import RecallCallback
from memlaw.model.base import wrap


class Wrapped(nn.Module):
    """A type of PEFT that nobody has heard of: `effect` is what it does to the logits of the base."""

    def __init__(self, tuned: Any, effect: Any):
        super().__init__()
        self.tuned, self.effect, self.active_peft_config = tuned, effect, tuned.active_peft_config

    def forward(self, **inputs: Any) -> Any:
        out = self.tuned(**inputs)
        out.logits = self.effect(out.logits)
        return out


def later_tokens(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output + output.mean(1, keepdim=True)


def other_rows(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output + output.mean(0, keepdim=True)


def test_an_effect_in_the_wrapper_is_found_whatever_its_type() -> None:
    tuned = peft.get_peft_model(tiny.model("llama"), peft_types.lora())
    base = wrap(tuned.get_base_model(), tiny.tokenizer())
    refuse_effects_outside(base, "It", Wrapped(tuned, lambda logits: logits))
    for effect in (lambda logits: logits * 1.01, lambda logits: torch.cat([logits, logits], 1)):
        with pytest.raises(AdapterFaultError, match="It is of the type LORA, which gives other logits in PEFT's"):
            refuse_effects_outside(base, "It", Wrapped(tuned, effect))


@pytest.mark.parametrize("hook", [later_tokens, other_rows])
def test_probabilities_that_depend_on_later_tokens_or_other_rows_are_refused(hook: Any) -> None:
    tuned = peft.get_peft_model(tiny.model("llama"), peft_types.lora())
    base = wrap(tuned, tiny.tokenizer())
    refuse_peft_model(base)
    tuned.get_submodule("base_model.model.model.layers.1.mlp.down_proj").register_forward_hook(hook)
    with pytest.raises(AdapterFaultError, match="or depends on later tokens or other rows"):
        refuse_peft_model(base)


def test_a_model_in_training_keeps_its_modes_and_its_dropout() -> None:
    tuned = peft.get_peft_model(tiny.model("llama"), peft_types.lora(lora_dropout=0.5)).train()
    refuse_peft_model(wrap(tuned, tiny.tokenizer()))
    assert all(module.training for module in tuned.modules())


def test_the_callback_refuses_a_model_with_virtual_tokens() -> None:
    tuned = peft.get_peft_model(tiny.model("llama"), peft_types.REFUSED["prompt-tuning"]())
    callback = RecallCallback([{"prompt": "a", "target": "b"}], every=1)
    with pytest.raises(AdapterFaultError, match="The PEFT model is of the type PROMPT_TUNING"):
        callback._prepare(tuned, tiny.tokenizer())
