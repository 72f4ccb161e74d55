from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from memlaw.adapter.info import WEIGHTS, load_info
from memlaw.model.base import Base, digests, load, other_precision, wrap
from memlaw.model.gguf_write import write_base


@pytest.fixture(scope="module")
def bundled() -> Base:
    return load(dtype="float32")


def changed(base: Base, change: Any) -> Base:
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        change(model)
    return wrap(model, base.tokenizer, name="changed")


@pytest.mark.parametrize(
    ("kind", "pure", "formats"),
    [
        ("q8_0", False, ("q8_0",)),
        ("q5_0", False, ("q5_0", "q8_0")),
        ("q4_0", False, ("q4_0", "q8_0")),
        ("q4_0", True, ("q4_0",)),
    ],
)
def test_a_quantised_base_is_known_and_a_quantised_fine_tune_of_it_is_not(
    kind: str, pure: bool, formats: tuple[str, ...], bundled: Base, tmp_path: Path
) -> None:
    write_base(bundled, tmp_path / "base.gguf", kind, pure=pure)
    assert other_precision(load(str(tmp_path / "base.gguf")), bundled.digests) == formats

    def one_matrix_by_a_thousandth(model: Any) -> None:
        model.model.layers[4].mlp.down_proj.weight.mul_(1.001)

    write_base(changed(bundled, one_matrix_by_a_thousandth), tmp_path / "tuned.gguf", kind, pure=pure)
    assert other_precision(load(str(tmp_path / "tuned.gguf")), bundled.digests) is None


def test_float32_weights_are_known_once_they_are_rounded_in_any_way(bundled: Base) -> None:
    finer = changed(bundled, lambda model: [weight.mul_(1 + 2**-10 + 2**-13) for weight in model.parameters()])
    assert finer.digests["sketch"][0] == "f"
    for dtype, kind in ((torch.bfloat16, "bf16"), (torch.float16, "f16")):
        cast = wrap(copy.deepcopy(finer.model).to(dtype).float(), finer.tokenizer, name="cast")
        assert other_precision(cast, finer.digests) == (kind,)
    assert other_precision(bundled, finer.digests) == ("bf16",)
    assert other_precision(finer, bundled.digests) is None


def test_other_vectors_other_shapes_and_missing_records_are_no_other_precision(bundled: Base) -> None:
    turned = changed(bundled, lambda model: model.model.norm.weight.mul_(1.01))
    assert other_precision(turned, bundled.digests) is None
    assert other_precision(bundled, None) is None
    assert other_precision(bundled, {**digests(bundled.model), "layout": "0"}) is None
    assert len(bundled.digests["sketch"]) < 6000


def test_a_base_with_an_adapter_merged_in_is_another_base_in_4_bits_too(
    bundled: Base, twelve_facts: Path, tmp_path: Path
) -> None:
    module, info = "model.layers.4.mlp.down_proj", load_info(twelve_facts)
    assert info is not None
    tensors = load_file(twelve_facts / WEIGHTS)
    a, b = (tensors[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
    merged = changed(bundled, lambda model: model.get_submodule(module).weight.add_(info.scale * b @ a))
    write_base(merged, tmp_path / "merged.gguf", "q4_0")
    file = load(str(tmp_path / "merged.gguf"))
    assert other_precision(file, bundled.digests) is None
    assert other_precision(file, merged.digests) == ("q4_0", "q8_0")
