from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from memlaw import model as models
from memlaw.errors import ModelError


def ids(rows: int = 3, time: int = 12) -> torch.Tensor:
    return torch.randint(3, tiny.VOCABULARY, (rows, time), generator=torch.Generator().manual_seed(1))


def test_the_base_is_given_back_as_it_was_found() -> None:
    model = tiny.model().train()
    model.model.layers[0].requires_grad_(False)
    model.gradient_checkpointing_enable()
    before = [(p.requires_grad) for p in model.parameters()]
    with models.frozen(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert model.training
    assert model.model.gradient_checkpointing
    assert before == [p.requires_grad for p in model.parameters()]


# --- identity --------------------------------------------------------------------------------------------------------


def test_a_fingerprint_survives_a_change_of_precision_but_not_of_one_weight() -> None:
    model = tiny.model(dtype=torch.bfloat16)
    mark = models.fingerprint(model)
    assert models.fingerprint(model.float()) == mark
    with torch.no_grad():
        model.lm_head.weight[5, 7] += 1.0
    assert models.fingerprint(model) != mark


def test_a_tokenizer_fingerprint_ignores_padding_but_not_the_vocabulary() -> None:
    one, two = tiny.tokenizer(), tiny.tokenizer()
    two(["a", "bc"], padding=True)
    assert models.tokenizer_fingerprint(one) == models.tokenizer_fingerprint(two)
    two.add_tokens(["new"])
    assert models.tokenizer_fingerprint(one) != models.tokenizer_fingerprint(two)


# --- loading ---------------------------------------------------------------------------------------------------------


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
    [("/no/such/model", "There is no model directory"), ("./nowhere", "There is no model directory")],
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


def test_an_unknown_dtype_lists_the_known_ones(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="known: auto, float32, bfloat16"):
        models.load(str(tmp_path), dtype="int3")
