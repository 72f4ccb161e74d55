from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from helpers.heads import probabilities
from memlaw.core.errors import ModelError
from memlaw.model.head import frozen_head
from memlaw.model.reach import reach

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
    names = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f")
    decoder = model.get_decoder()
    return next(getattr(decoder, name) for name in names if hasattr(decoder, name))


def test_logits_of_a_head_cut_into_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    head = frozen_head(tiny_model("phi"))  # it has a bias
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    whole = head.logits(hidden)
    monkeypatch.setattr("memlaw.model.head._ROWS_AT_ONCE", 7)
    torch.testing.assert_close(head.logits(hidden), whole)


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


WIDE = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DEEP = WIDE | {"intermediate_size": 64}
RANDOM_STARTS: dict[str, dict[str, Any]] = {
    "OPT": WIDE | {"ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "Phi": DEEP,
    "Cohere": DEEP,
    "Cohere2": DEEP | {"num_key_value_heads": 2},
    "Falcon": WIDE,
    "GPTNeo": {
        "vocab_size": 128,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "StableLm": DEEP | {"num_key_value_heads": 4},
    "Mpt": {"vocab_size": 128, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "GPT2": GPT,
    "GPTNeoX": DEEP,
    "GPTJ": GPT | {"rotary_dim": 4},
    "CodeGen": GPT | {"rotary_dim": 4},
    "GPTBigCode": GPT,
    "Bloom": {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Starcoder2": DEEP | {"num_key_value_heads": 2},
    "Olmo": DEEP,
    "Nemotron": DEEP | {"num_key_value_heads": 2, "head_dim": 8},
    "Llama": DEEP,
    "Gemma2": DEEP | {"num_key_value_heads": 2, "head_dim": 8},
    "Granite": DEEP | {"num_key_value_heads": 2, "logits_scaling": 8.0},
}


def assert_own_logits_at_a_random_start(family: str, epsilon: float | None = None) -> None:
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**RANDOM_STARTS[family], **ids)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    norm: Any = final_norm_of(model)
    if epsilon is not None:
        setattr(norm, "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps", epsilon)
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        wanted = model(input_ids=torch.arange(3, 35)[None]).logits[0]
    torch.testing.assert_close(frozen_head(model).logits(seen[0][0]), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", RANDOM_STARTS)
def test_at_an_ordinary_random_start_the_head_gives_the_models_own_logits(family: str) -> None:
    # Final states are as small as the embeddings there, so that the norm's epsilon changes the logits by a percent.
    assert_own_logits_at_a_random_start(family)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-3])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "OPT", "Cohere"])
def test_the_epsilon_of_a_norm_is_measured_whatever_it_is_called(family: str, epsilon: float) -> None:
    assert_own_logits_at_a_random_start(family, epsilon)


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
