from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from helpers import packed, tiny
from memlaw.core.errors import ModelError
from memlaw.model import base as models


def ids(rows: int = 3, time: int = 12) -> torch.Tensor:
    return torch.randint(3, tiny.VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(1))


def test_a_fingerprint_survives_a_change_of_precision_but_not_of_one_weight() -> None:
    model = tiny.model(dtype=torch.bfloat16)
    mark = models.fingerprint(model)
    assert models.fingerprint(model.float()) == mark
    with torch.no_grad():
        model.lm_head.weight[5, 7] += 1.0
    assert models.fingerprint(model) != mark


DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module", params=DTYPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The dtype and directory of a saved base with weights of every size down to float16's smallest."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny.model()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= torch.exp2(-torch.arange(weight.shape[-1]) % 20)
    model.to(getattr(torch, request.param)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return request.param, folder


@pytest.mark.parametrize("judged", DTYPES)
@pytest.mark.parametrize("trained", DTYPES)
def test_a_base_is_known_again_in_every_precision(checkpoint: tuple[str, Path], trained: str, judged: str) -> None:
    saved, folder = checkpoint
    before, now = (models.load(str(folder), dtype=dtype) for dtype in (trained, judged))
    if saved == "float32" and {trained, judged} == {"bfloat16", "float16"}:  # two roundings of what neither has
        assert not models.same_base(now, before.fingerprint, before.digests)
        assert "--dtype float32" in models.base_difference(now, before.digests)
        now = models.load(str(folder), dtype="float32")
    assert models.same_base(now, before.fingerprint, before.digests)


@pytest.mark.parametrize("judged", DTYPES)
def test_another_base_is_told_from_it_in_every_precision(checkpoint: tuple[str, Path], judged: str) -> None:
    before, now = models.load(str(checkpoint[1])), models.load(str(checkpoint[1]), dtype=judged)
    with torch.no_grad():
        now.model.lm_head.weight[5, 0] += 1.0
    other = tiny.wrap(now.model, now.tokenizer)
    assert not models.same_base(other, before.fingerprint, before.digests)
    assert "a fine-tuned, merged, quantised or dequantised copy" in models.base_difference(other, before.digests)


def test_an_adapter_saved_without_digests_is_known_on_the_weights_it_was_trained_on() -> None:
    model = tiny.model(dtype=torch.float32)
    full = tiny.wrap(model, tiny.tokenizer())
    assert models.same_base(full, full.fingerprint)
    half = tiny.wrap(model.half(), tiny.tokenizer())
    assert half.fingerprint != full.fingerprint
    assert models.same_base(full, half.fingerprint)
    assert not models.same_base(half, full.fingerprint)
    assert "load it as it was trained on" in models.base_difference(half)


def test_a_quantised_copy_is_another_base_and_is_called_one() -> None:
    quantised = packed.model()
    quantised.is_quantized, quantised.quantization_method = True, packed.METHOD
    ordinary = tiny.wrap(packed.unpacked(quantised), tiny.tokenizer())
    copy = tiny.wrap(quantised, tiny.tokenizer())
    assert not models.same_base(copy, ordinary.fingerprint, ordinary.digests)
    assert f"are quantised ({packed.METHOD})" in models.base_difference(copy, ordinary.digests)
    assert not models.same_base(ordinary, copy.fingerprint, copy.digests)
    assert f"on quantised weights ({packed.METHOD})" in models.base_difference(ordinary, copy.digests)
    larger = tiny.wrap(tiny.model(num_hidden_layers=5), tiny.tokenizer())
    assert "another architecture" in models.base_difference(larger, ordinary.digests)


def test_a_tied_weight_counts_once_and_an_unpacking_scale_like_a_weight() -> None:
    tied = tiny.model("llama-tied")
    mark = models.fingerprint(tied)
    tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.detach().clone())
    assert models.fingerprint(tied) != mark
    quantised = packed.model()
    mark = models.fingerprint(quantised)
    assert models.fingerprint(packed.model()) == mark
    assert models.fingerprint(quantised.to(torch.bfloat16)) == mark
    module = quantised.model.layers[1].self_attn.q_proj
    module.scale *= 2
    assert models.fingerprint(quantised) != mark
    module.scale /= 2
    module.weight.data[3, 3] += 1
    assert models.fingerprint(quantised) != mark


def test_a_tokenizer_fingerprint_ignores_padding_but_not_the_vocabulary() -> None:
    one, two = tiny.tokenizer(), tiny.tokenizer()
    two(["a", "bc"], padding=True)
    assert models.tokenizer_fingerprint(one) == models.tokenizer_fingerprint(two)
    two.add_tokens(["new"])
    assert models.tokenizer_fingerprint(one) != models.tokenizer_fingerprint(two)


def test_a_local_directory_loads_like_a_hub_model(tmp_path: Path) -> None:
    model = tiny.model()
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    base = models.load(str(tmp_path))
    assert base.fingerprint == models.fingerprint(model)
    assert (base.dtype, base.device, base.layers, base.context) == ("float32", "cpu", 4, 128)
    assert models.load(str(tmp_path), dtype="bfloat16").fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [("/no/such/model", "model directory .* does not exist"), ("./nowhere", "model directory .* does not exist")],
)
def test_a_missing_directory_is_named(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.load(name)


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        models.load(str(tmp_path))


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer that can be loaded"):
        models.load(str(tmp_path))


def test_a_hub_id_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(ModelError, match="nobody/no-such-model"):
        models.load("nobody/no-such-model")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = tiny.model()
    model.config.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never unpickles"):
        models.load(str(tmp_path))


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"ids up to {tiny.VOCABULARY}, but the embedding has {tiny.VOCABULARY} rows"):
        models.load(str(tmp_path))


def test_a_head_with_fewer_rows_than_the_tokenizer_has_ids_is_refused() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    tokenizer.add_tokens(["extra"])
    model.set_input_embeddings(torch.nn.Embedding(tiny.VOCABULARY + 1, 32))
    with pytest.raises(ModelError, match=rf"ids up to {tiny.VOCABULARY}, but the head has {tiny.VOCABULARY} rows"):
        models.wrap(model, tokenizer)
    model = tiny.model()
    model.resize_token_embeddings(tiny.VOCABULARY + 1, mean_resizing=False)
    assert models.wrap(model, tokenizer).warnings == ()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_tied_head_causes_a_warning(family: str) -> None:
    base = tiny.base(family)
    assert bool(base.warnings) == base.model.config.tie_word_embeddings
    for warning in base.warnings:
        assert warning.startswith(f"The head of tiny-{family} is its input embedding.")
        assert "no adapter of any rank is certain to recall them" in warning


def test_a_quantised_base_has_the_dtype_it_computes_in() -> None:
    model = packed.model(dtype=torch.bfloat16)
    model.packed_first = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    assert next(model.parameters()).dtype == torch.uint8
    assert models.wrap(model, tiny.tokenizer()).dtype == "bfloat16"


def test_a_quantised_checkpoint_stays_packed(tmp_path: Path) -> None:
    model = packed.model()
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    base = models.load(str(tmp_path), device="cpu")
    assert isinstance(base.model.model.layers[2].mlp.down_proj, packed.PackedLinear)
    assert (base.dtype, base.device, base.fingerprint) == ("float32", "cpu", models.fingerprint(model))
    with pytest.raises(ModelError, match="packed weights cannot be converted to bfloat16. Leave the dtype at auto"):
        models.load(str(tmp_path), dtype="bfloat16")


def test_the_library_that_a_quantised_checkpoint_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(ModelError, match="needs a library that is not installed .*bitsandbytes"):
        models.load(str(tmp_path))


def test_a_quantised_head_is_refused() -> None:
    model = packed.model()
    model.lm_head = packed.PackedLinear.from_linear(model.lm_head)
    with pytest.raises(ModelError, match=r"The head of mine is quantised \(torch\.uint8\).*llm_int8_skip_modules"):
        models.wrap(model, tiny.tokenizer(), name="mine")


def test_bitsandbytes_on_a_cpu_is_refused() -> None:
    model = tiny.model()
    model.quantization_method = "bitsandbytes"
    with pytest.raises(ModelError, match="on a CPU may compute in bfloat16 and without gradients"):
        models.wrap(model, tiny.tokenizer())


def test_an_unknown_dtype_lists_the_known_ones(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="known: auto, float32, bfloat16"):
        models.load(str(tmp_path), dtype="int3")
