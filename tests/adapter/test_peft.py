from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import packed, tiny
from helpers.adapters import trained
from memlaw.adapter.info import INFO, WEIGHTS, load_info
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import PEFT_CONFIG, attach, loaded, save
from memlaw.core.errors import AdapterError
from memlaw.model.base import Base

IDS = torch.randint(3, tiny.VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(3))


def logits(base: Base) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = base.model(input_ids=IDS, use_cache=False).logits
    return out


@pytest.mark.parametrize("text", ["down_proj@2", "mlp@1", "all-linear", "q_proj,v_proj@1-2"])
def test_a_saved_adapter_gives_the_logits_it_gave(text: str, tmp_path: Path) -> None:
    base = tiny.base()
    placement = placement_on(text, base.model)
    stack, bare = trained(placement), logits(base)
    with stack.attached(base.model):
        expected = logits(base)
    save(stack, placement, base, tmp_path / "a")
    with attach(base, tmp_path / "a"):
        torch.testing.assert_close(logits(base), expected, rtol=1e-5, atol=2e-4)
    assert torch.equal(logits(base), bare)
    assert not torch.allclose(bare, expected, atol=0.1)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "phi3"])
def test_peft_loads_it_unchanged_and_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = tiny.base(family)
    placement = placement_on(None, base.model)
    stack = trained(placement)
    with stack.attached(base.model):
        expected = logits(base)
    save(stack, placement, base, tmp_path / "a")
    tuned = PeftModel.from_pretrained(tiny.model(family), str(tmp_path / "a")).eval()
    with torch.no_grad():
        loaded = tuned(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("text", ["down_proj@2", "mlp@1", "all-linear"])
def test_an_adapter_of_a_quantised_base_is_saved_and_loaded_like_any_other(text: str, tmp_path: Path) -> None:
    base = tiny.wrap(packed.model(), tiny.tokenizer())
    placement = placement_on(text, base.model)
    stack, bytes_before = trained(placement), base.fingerprint
    with stack.attached(base.model):
        expected = logits(base)
    save(stack, placement, base, tmp_path / "a")
    with attach(base, tmp_path / "a"):
        torch.testing.assert_close(logits(base), expected, rtol=1e-5, atol=2e-4)
    assert tiny.wrap(base.model, base.tokenizer).fingerprint == bytes_before


def test_an_adapter_leaves_a_shared_weight_unchanged(tmp_path: Path) -> None:
    model = tiny.model()
    shared = model.model.layers[1].mlp.down_proj.weight
    model.model.layers[2].mlp.down_proj.weight = shared
    base, before = tiny.wrap(model, tiny.tokenizer()), shared.detach().clone()
    placement = placement_on("down_proj@2", model)
    stack, bare = trained(placement), logits(base)
    with stack.attached(model):
        expected = logits(base)
    save(stack, placement, base, tmp_path / "a")
    with attach(base, tmp_path / "a"):
        torch.testing.assert_close(logits(base), expected, rtol=1e-5, atol=2e-4)
    assert torch.equal(logits(base), bare)
    assert torch.equal(shared, before)
    assert model.model.layers[2].mlp.down_proj.weight is shared


def test_the_parallel_adapter_is_not_offered_to_peft(tmp_path: Path) -> None:
    base = tiny.base()
    placement = placement_on("mlp@1", base.model)
    save(trained(placement), placement, base, tmp_path / "a")
    assert not (tmp_path / "a" / PEFT_CONFIG).exists()
    info = load_info(tmp_path / "a")
    assert info is not None
    assert (info.placement, info.rank, info.scale) == ("mlp@1", 3, 1.5)


def saved(tmp_path: Path) -> tuple[Base, Path]:
    base = tiny.base()
    placement = placement_on(None, base.model)
    save(trained(placement), placement, base, tmp_path / "a", details={"records": 5})
    return base, tmp_path / "a"


def test_saving_again_replaces_an_adapter_but_nothing_else(tmp_path: Path) -> None:
    base, directory = saved(tmp_path)
    placement = placement_on(None, base.model)
    save(trained(placement, rank=2), placement, base, directory)
    assert json.loads((directory / INFO).read_text())["rank"] == 2
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match=r"belongs to something else \(it holds notes\.txt\)"):
        save(trained(placement), placement, base, directory)
    assert json.loads((directory / INFO).read_text())["rank"] == 2


def test_its_card_says_that_it_holds_the_data(tmp_path: Path) -> None:
    _, directory = saved(tmp_path)
    assert "contains its training data" in (directory / "README.md").read_text()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    _, directory = saved(tmp_path)
    other = tiny.base(seed=1)
    with pytest.raises(AdapterError, match="trained on another base"), attach(other, directory):
        pass


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    base, directory = saved(tmp_path)
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-10] ^= 4
    (directory / WEIGHTS).write_bytes(content)
    with pytest.raises(AdapterError, match="not the file that was saved"), attach(base, directory):
        pass


def test_a_truncated_file_of_another_tool_is_noticed(tmp_path: Path) -> None:
    base, directory = saved(tmp_path)
    (directory / INFO).unlink()
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-50])
    with pytest.raises(AdapterError, match="not a readable safetensors file"), attach(base, directory):
        pass


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    base, directory = saved(tmp_path)
    placement = placement_on(None, base.model)
    bad = trained(placement)
    bad.pairs[0][1][0, 0, 0] = torch.nan
    with pytest.raises(AdapterError, match="not finite"):
        save(bad, placement, base, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    (directory / INFO).unlink()
    tensors = load_file(directory / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = torch.inf
    save_file(tensors, directory / WEIGHTS)
    with pytest.raises(AdapterError, match="not finite"), attach(base, directory):
        pass


def test_an_interrupted_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.base()
    placement = placement_on(None, base.model)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("memlaw.core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(trained(placement), placement, base, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["down_proj@2", "mlp@1", "all-linear"])
def test_a_saved_adapter_is_loaded_to_train_on_as_it_was(text: str, tmp_path: Path) -> None:
    base = tiny.base()
    placement = placement_on(text, base.model)
    stack = trained(placement, 3, scale=1.5)
    save(stack, placement, base, tmp_path / "a")
    found = loaded(base, tmp_path / "a")
    assert (found.sites, found.ranks, found.scale.tolist()) == (stack.sites, stack.ranks, stack.scale.tolist())
    assert all(torch.equal(one, other) for one, other in zip(found.tensors, stack.tensors, strict=True))


def test_only_an_undamaged_adapter_that_memlaw_trained_for_this_base_is_loaded_to_train_on(tmp_path: Path) -> None:
    base, path = tiny.base(), tmp_path / "a"
    placement = placement_on(None, base.model)
    save(trained(placement), placement, base, path)
    with pytest.raises(AdapterError, match="base"):
        loaded(tiny.base(seed=1), path)
    tensors = load_file(path / WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path / WEIGHTS)
    with pytest.raises(AdapterError, match="not the file that was saved"):
        loaded(base, path)
    (path / INFO).unlink()
    with pytest.raises(AdapterError, match=f"has no {INFO}: only an adapter that memlaw trained"):
        loaded(base, path)
