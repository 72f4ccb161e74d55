from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helpers import packed, tiny
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import resolve
from memlaw.core.errors import ModelError
from memlaw.model.base import load
from memlaw.model.outline_from_files import outline_of_files
from memlaw.model.outline_from_module import outline_of_model


def saved(model: Any, folder: Path, **how: Any) -> str:
    model.save_pretrained(folder, **how)
    return str(folder)


def change_config(folder: Path, **changes: Any) -> None:
    """None removes a setting."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_outline_of_the_files_equals_that_of_the_model(family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    name = saved(model, tmp_path)
    from_files = outline_of_files(name)
    assert from_files == outline_of_model(model, name=name)
    assert from_files.digest == outline_of_model(model).digest
    for text in (None, "mlp@1", "all-linear"):
        assert resolve(text, from_files) == placement_on(text, model)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_its_numbers_are_those_of_the_weights(family: str, tmp_path: Path) -> None:
    model = tiny.model(family)
    outline = outline_of_files(saved(model, tmp_path))
    layers = [layer.parameters() for layer in model.get_decoder().children() if isinstance(layer, torch.nn.ModuleList)]
    assert sum(outline.layer_weights) == sum(p.numel() for parameters in layers for p in parameters)
    assert outline.weights_from(4) == outline.head_weights == model.get_output_embeddings().weight.numel()
    assert outline.weights_from(1) == sum(outline.layer_weights[1:]) + outline.head_weights
    for site in outline.linear:
        weight = model.get_submodule(site.path).weight
        assert tuple(weight.shape) == ((site.d_in, site.d_out) if site.transposed else (site.d_out, site.d_in))
    assert (outline.layers, outline.width, outline.vocabulary, outline.context) == (4, 32, tiny.VOCABULARY, 128)


def test_the_bundled_base() -> None:
    outline, base = outline_of_files("memlaw/base"), load("memlaw/base")
    assert outline == outline_of_model(base.model, name="memlaw/base")
    assert (outline.family, outline.context) == ("qwen3", base.context)


def test_a_model_in_several_files(tmp_path: Path) -> None:
    model = tiny.model()
    name = saved(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert outline_of_files(name) == outline_of_model(model, name=name)


def test_only_conv1d_is_transposed_though_square_weights_do_not_tell(tmp_path: Path) -> None:
    outline = outline_of_files(saved(tiny.model("gpt2"), tmp_path))
    assert all(site.transposed for site in outline.linear)
    assert {(s.d_in, s.d_out) for s in outline.linear} == {(32, 32), (32, 96), (32, 128), (128, 32)}
    (tmp_path / "neox").mkdir()
    neox = outline_of_files(saved(tiny.model("gpt-neox"), tmp_path / "neox"))
    assert not any(site.transposed for site in neox.linear)


def test_masks_and_angles_of_older_checkpoints_are_no_weights(tmp_path: Path) -> None:
    model = tiny.model("gpt2")
    name = saved(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in range(4):
        at = f"transformer.h.{layer}.attn"
        tensors |= {f"{at}.bias": torch.ones(1, 1, 128, 128), f"{at}.masked_bias": torch.tensor(-1e4)}
        tensors[f"{at}.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert outline_of_files(name) == outline_of_model(model, name=name)


def test_a_checkpoint_of_the_decoder_alone_differs_in_the_start_of_its_paths(tmp_path: Path) -> None:
    """Like GPT-2's on the Hub, whose tensors are named h.0... instead of transformer.h.0..."""
    model = tiny.model("gpt2")
    name = saved(model.transformer, tmp_path)
    change_config(tmp_path, architectures=["GPT2LMHeadModel"])
    from_files, whole = outline_of_files(name), outline_of_model(model, name=name)
    assert from_files.linear[0].path == "h.0.attn.c_attn"
    assert from_files.digest == whole.digest
    assert (from_files.layer_weights, from_files.head_weights) == (whole.layer_weights, whole.head_weights)


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    name = saved(packed.model(), tmp_path)
    with pytest.raises(ModelError, match=r"quantised: .*packed bytes.*Use --calibrate, which loads the model"):
        outline_of_files(name)


@pytest.mark.parametrize("experts", ["mlp.experts.0.gate_proj.weight", "block_sparse_moe.router.layer.weight"])
def test_a_mixture_of_experts_is_refused(experts: str, tmp_path: Path) -> None:
    name = saved(tiny.model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"model.layers.3.{experts}"] = torch.zeros(8, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"mixture of experts, .*Use --calibrate"):
        outline_of_files(name)


def test_layers_that_are_missing_or_ambiguous_are_refused(tmp_path: Path) -> None:
    name = saved(tiny.model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    twice = {key.replace("model.", "vision.", 1): value.clone() for key, value in tensors.items()}
    save_file(tensors | twice, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"hold 2 lists \(model\.layers, vision\.layers\) of 4 numbered layers"):
        outline_of_files(name)
    save_file({k: v for k, v in tensors.items() if ".layers.2." not in k}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="hold no list of 4 numbered layers"):
        outline_of_files(name)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_size_missing_from_the_configuration_is_named(key: str, tmp_path: Path) -> None:
    name = saved(tiny.model(), tmp_path)
    change_config(tmp_path, **{key: None})
    with pytest.raises(ModelError, match=f"does not give its {key}"):
        outline_of_files(name)


def test_the_context_may_be_unknown_and_sizes_may_be_under_text_config(tmp_path: Path) -> None:
    name = saved(tiny.model(), tmp_path)
    change_config(tmp_path, max_position_embeddings=None)
    assert outline_of_files(name).context is None
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "both", "text_config": config}))
    assert outline_of_files(name).family == "qwen3"


def test_a_vocabulary_of_another_size_than_the_embedding_is_refused(tmp_path: Path) -> None:
    name = saved(tiny.model(), tmp_path)
    change_config(tmp_path, vocab_size=tiny.VOCABULARY + 1)
    with pytest.raises(ModelError, match=r"no embedding or head with the 97 rows.*resize_token_embeddings"):
        outline_of_files(name)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    tiny.model().config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"lacks model\.safetensors\. memlaw never unpickles"):
        outline_of_files(str(tmp_path))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    name = saved(tiny.model(), tmp_path, max_shard_size="20KB")
    first = min(tmp_path.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-7])
    with pytest.raises(ModelError, match=rf"{first.name} of .* is not a readable safetensors file"):
        outline_of_files(name)
    first.unlink()
    with pytest.raises(ModelError, match=rf"lacks {first.name}"):
        outline_of_files(name)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json of .* is not JSON"):
        outline_of_files(name)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json of .* is not a JSON object"):
        outline_of_files(name)


@pytest.mark.parametrize(
    "weight_map", [None, {}, [], {"a": "../other/model.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}]
)
def test_an_index_names_files_beside_it_and_no_others(weight_map: Any, tmp_path: Path) -> None:
    name = saved(tiny.model(), tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="does not name the safetensors files beside it"):
        outline_of_files(name)


SHAPES = st.dictionaries(
    st.from_regex(r"\A(model\.layers\.[0-2]\.)?(mlp\.|norm|a\.b)?\.?(weight|bias|experts)\Z"),
    st.lists(st.integers(0, 5), max_size=3),
    max_size=8,
)

ANYTHING = st.integers(-1, 5) | st.none() | st.text(max_size=2) | st.lists(st.integers(), max_size=1) | st.just({})

CONFIGS = st.fixed_dictionaries(
    {"num_hidden_layers": st.integers(1, 3), "hidden_size": st.integers(1, 3), "vocab_size": st.integers(1, 5)},
    optional=dict.fromkeys(("text_config", "model_type", "quantization_config"), ANYTHING),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(config=CONFIGS, shapes=SHAPES, noise=st.binary(max_size=3))
def test_any_files_are_an_outline_or_a_clear_error(config: Any, shapes: Any, noise: bytes, tmp_path: Path) -> None:
    header, end = {}, 0
    for key, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end) + noise)
    with contextlib.suppress(ModelError):
        assert outline_of_files(str(tmp_path)).layers == config["num_hidden_layers"]
