from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny
from helpers.adapters import trained
from memlaw.adapter.gguf import base_of, write_adapter
from memlaw.adapter.info import INFO, WEIGHTS
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import PEFT_CONFIG, save
from memlaw.core.errors import AdapterError, ModelError
from memlaw.model.base import Base


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny.base("llama")


@pytest.fixture(scope="module")
def saved(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rank 3 and scale 1.5 at two modules of layer 2."""
    out = tmp_path_factory.mktemp("adapter") / "A"
    placement = placement_on("q_proj,down_proj@2", base.model)
    save(trained(placement), placement, base, out)
    return out


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def changed(saved: Path, out: Path, **settings: Any) -> Path:
    """The adapter as PEFT would have saved it with other settings."""
    shutil.copytree(saved, out)
    (out / INFO).unlink()
    config = json.loads((out / PEFT_CONFIG).read_text()) | settings
    (out / PEFT_CONFIG).write_text(json.dumps(config))
    return out


def test_a_file_holds_the_adapter_as_llama_cpp_names_it(base: Base, saved: Path, tmp_path: Path) -> None:
    write_adapter(saved, base.model.config, tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["adapter.type"], fields["adapter.lora.alpha"]) == ("adapter", "lora", 4.5)
    found = tensors(tmp_path / "a.gguf")
    stems = ("blk.2.attn_q.weight", "blk.2.ffn_down.weight")
    assert sorted(found) == sorted(f"{stem}.lora_{half}" for stem in stems for half in "ab")
    ours = load_file(saved / "adapter_model.safetensors")
    path = "base_model.model.model.layers.2.mlp.down_proj.lora_{}.weight"
    assert np.array_equal(found["blk.2.ffn_down.weight.lora_a"], ours[path.format("A")].numpy())
    assert np.array_equal(found["blk.2.ffn_down.weight.lora_b"], ours[path.format("B")].numpy())


def test_the_rows_of_queries_are_ordered_as_llama_cpp_rotates_them(base: Base, saved: Path, tmp_path: Path) -> None:
    write_adapter(saved, base.model.config, tmp_path / "a.gguf")
    found = tensors(tmp_path / "a.gguf")["blk.2.attn_q.weight.lora_b"]
    ours = load_file(saved / "adapter_model.safetensors")
    rows = ours["base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"]
    order = [8 * head + half * 4 + place for head in range(4) for place in range(4) for half in range(2)]
    assert torch.equal(torch.from_numpy(found.copy()), rows[order])


def test_the_scale_is_kept_where_peft_computes_it_in_another_way(base: Base, saved: Path, tmp_path: Path) -> None:
    rooted = changed(saved, tmp_path / "rs", use_rslora=True, lora_alpha=6)
    write_adapter(rooted, base.model.config, tmp_path / "a.gguf")
    alpha = gguf.GGUFReader(tmp_path / "a.gguf").fields["adapter.lora.alpha"].contents()
    assert alpha / 3 == pytest.approx(6 / 3**0.5)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"use_dora": True}, "LoRA with use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, "LoRA with rank_pattern"),
        ({"bias": "all"}, "LoRA with bias"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_a_file_cannot_say_is_refused(
    settings: dict[str, Any], kind: str, base: Base, saved: Path, tmp_path: Path
) -> None:
    other = changed(saved, tmp_path / "other", **settings)
    with pytest.raises(AdapterError, match=rf"of the kind {kind}, and llama.cpp loads plain LoRA only. Merge"):
        write_adapter(other, base.model.config, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_an_adapter_that_llama_cpp_cannot_load_is_refused(base: Base, saved: Path, tmp_path: Path) -> None:
    parallel, placement = tmp_path / "parallel", placement_on("mlp@2", base.model)
    save(trained(placement), placement, base, parallel)
    with pytest.raises(AdapterError, match="parallel adapter"):
        write_adapter(parallel, base.model.config, tmp_path / "a.gguf")
    with pytest.raises(ModelError, match="this model is gemma3_text"):
        write_adapter(saved, tiny.model("gemma3").config, tmp_path / "a.gguf")
    tied = tiny.base("llama-tied")
    head = changed(saved, tmp_path / "head")
    names = [f"base_model.model.lm_head.lora_{half}.weight" for half in "AB"]
    save_file(dict(zip(names, (torch.ones(3, 32), torch.ones(96, 3)), strict=True)), head / WEIGHTS)
    with pytest.raises(AdapterError, match="whose head is its embedding"):
        write_adapter(tmp_path / "head", tied.model.config, tmp_path / "a.gguf")


def test_the_base_is_named_by_the_adapter(base: Base, saved: Path, tmp_path: Path) -> None:
    assert base_of(saved) == base.name
    assert base_of(changed(saved, tmp_path / "peft", base_model_name_or_path="own/base")) == "own/base"
    with pytest.raises(AdapterError, match="does not say which base"):
        base_of(changed(saved, tmp_path / "nameless", base_model_name_or_path=None))
