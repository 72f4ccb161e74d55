"""Adapters that PEFT loads without a word, though what it loads is not what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import memlaw
from helpers import adapters, packed, peft_types, tiny
from helpers.checks import GOOD, facts, findings_of, the_one
from helpers.fingerprints import everything
from memlaw.adapter.faults import Allow, cause
from memlaw.adapter.info import WEIGHTS, AdapterFaultError, load_info
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import PEFT_CONFIG, attach, save
from memlaw.api import check_on
from memlaw.core.errors import AdapterError
from memlaw.model.base import Base, load, wrap

IDS = torch.randint(3, tiny.VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return out


def named_base(name: str, **changes: Any) -> Base:
    model = tiny.model("llama", **changes)
    model.config.name_or_path = name
    return wrap(model, tiny.tokenizer())


def rewritten(directory: Path, change: Any) -> Path:
    """The adapter with each of its tensors, by name, passed through `change`; None leaves it out."""
    tensors = dict(filter(None, (change(name, tensor) for name, tensor in load_file(directory / WEIGHTS).items())))
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def without_a_layer(name: str, tensor: torch.Tensor) -> Any:
    return None if "layers.1." in name else (name, tensor)


def misnamed(name: str, tensor: torch.Tensor) -> Any:
    return name.replace("layers.1.", "blocks.1."), tensor


@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_layer, r"loaded: 2 of its weights are missing and stay untrained \(first \S*layers\.1\.\S*lora_A"),
        (misnamed, r"2 of its 8 tensors have no place in this model .*blocks\.1\..*; 2 of its weights are missing"),
    ],
)
def test_half_an_adapter_is_a_fault_that_can_be_allowed(change: Any, message: str, tmp_path: Path) -> None:
    directory = rewritten(peft_types.made("lora", tmp_path / "a"), change)
    base = tiny.base("llama")
    before = everything(base.model)
    with pytest.raises(AdapterFaultError, match=message) as refused, attach(base, directory):
        pass
    assert "--allow-partial" in str(refused.value)
    assert everything(base.model) == before
    assert the_one(check_on(base, facts(*GOOD), adapter=directory), "adapter-is-partial").severity == "error"
    warned = check_on(base, facts(*GOOD), adapter=directory, allow_partial=True)
    assert the_one(warned, "adapter-is-partial").severity == "warning"
    expected = logits(PeftModel.from_pretrained(tiny.model("llama"), str(directory)).eval())
    with attach(base, directory, Allow(partial=True)) as (fault,):
        assert fault.code == "adapter-is-partial"
        torch.testing.assert_close(logits(base.model), expected)
    with pytest.warns(UserWarning, match="Only a part of the adapter"):
        memlaw.recall(base.model, base.tokenizer, facts(*GOOD), adapter=directory, decode=False, allow_partial=True)


def names_base(directory: Path, name: str) -> Path:
    path = directory / PEFT_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
    return directory


@pytest.mark.parametrize(
    "name",
    ["org/Model-8B", "model-8b", "/data/models/Model-8B/", "C:\\models\\Model-8B",
     "/hub/models--other--Model-8B/snapshots/0123abc", "", None, "LlamaForCausalLM"],
)  # fmt: skip
def test_a_base_by_another_spelling_of_its_name_is_the_same(name: Any, tmp_path: Path) -> None:
    directory = names_base(peft_types.made("lora", tmp_path / "a"), name)
    with attach(named_base("org/Model-8B"), directory) as faults:
        assert not faults
    with attach(tiny.base("llama"), names_base(directory, "tiny-llama")) as faults:
        assert not faults


def test_another_base_by_name_is_a_fault_that_can_be_allowed(tmp_path: Path) -> None:
    directory = names_base(peft_types.made("lora", tmp_path / "a"), "org/Model-8B-Instruct")
    base = named_base("org/Model-8B")
    expected = "was trained on org/Model-8B-Instruct, as its adapter_config.json says, not on org/Model-8B"
    with pytest.raises(AdapterFaultError, match=expected) as refused, attach(base, directory):
        pass
    assert "--allow-other-base" in str(refused.value)
    assert the_one(check_on(base, facts(*GOOD), adapter=directory), "adapter-of-another-base").severity == "error"
    allowed = check_on(base, facts(*GOOD), adapter=directory, allow_other_base=True)
    assert the_one(allowed, "adapter-of-another-base").severity == "warning"
    with attach(base, directory, Allow(other_base=True)) as (fault,):
        assert fault.code == "adapter-of-another-base"
        assert torch.equal(logits(base.model), logits(PeftModel.from_pretrained(tiny.model("llama"), str(directory))))


@pytest.mark.parametrize("placement", ["down_proj@2", "mlp@1"])
def test_another_base_by_its_weights_can_be_allowed(placement: str, tmp_path: Path) -> None:
    trained_on, base = tiny.base("llama"), tiny.base("llama", seed=1)
    where = {"placement": placement, "out": tmp_path / "a", "steps": 2, "until": "budget"}
    memlaw.train(trained_on.model, trained_on.tokenizer, facts(*GOOD), rank=2, **where)
    with pytest.raises(AdapterFaultError, match="was trained on another base"), attach(base, tmp_path / "a"):
        pass
    bare = logits(base.model)
    with attach(base, tmp_path / "a", Allow(other_base=True)) as (fault,):
        assert fault.code == "adapter-of-another-base"
        assert not torch.equal(logits(base.model), bare)


def test_a_resized_vocabulary_is_told_with_the_reason_of_torch_and_the_way_out(tmp_path: Path) -> None:
    grown = tiny.model("llama", vocab_size=tiny.VOCABULARY + 8)
    peft.get_peft_model(grown, peft_types.lora(modules_to_save=["embed_tokens"])).save_pretrained(str(tmp_path / "a"))
    base = tiny.base("llama")
    before = everything(base.model)
    expected = r"RuntimeError: size mismatch for \S*embed_tokens\S*: .*\[104, 32\].*\[96, 32\].*resize_token_embeddings"
    with pytest.raises(AdapterFaultError, match=expected), attach(base, tmp_path / "a"):
        pass
    assert everything(base.model) == before
    assert (
        "size mismatch" in the_one(check_on(base, facts(*GOOD), adapter=tmp_path / "a"), "adapter-not-loadable").message
    )


def test_empty_tensors_are_a_fault(tmp_path: Path) -> None:
    directory = rewritten(
        peft_types.made("lora", tmp_path / "a"),
        lambda name, tensor: (name, torch.empty(0) if "lora_B" in name else tensor),
    )
    base = tiny.base("llama")
    expected = r"4 of the 8 tensors of .* are empty \(first .*lora_B"
    with pytest.raises(AdapterFaultError, match=expected), attach(base, directory):
        pass
    assert "ZeRO-3" in the_one(check_on(base, facts(*GOOD), adapter=directory), "adapter-has-empty-tensors").message


def test_an_adapter_one_folder_deeper_is_found(tmp_path: Path) -> None:
    tuned = peft.get_peft_model(tiny.model("llama"), peft_types.lora(), adapter_name="mine")
    tuned.save_pretrained(str(tmp_path / "a"))
    base = tiny.base("llama")
    with pytest.raises(AdapterFaultError, match=rf"its folder mine does\. Use {tmp_path / 'a' / 'mine'}\."):
        load_info(tmp_path / "a")
    finding = the_one(check_on(base, facts(*GOOD), adapter=tmp_path / "a"), "adapter-one-folder-deeper")
    assert finding.severity == "error"
    assert not findings_of(check_on(base, facts(*GOOD), adapter=tmp_path / "a" / "mine"), "adapter-one-folder-deeper")


@pytest.mark.parametrize("name", ["prompt-tuning", "prefix-tuning", "alora", "lily", "poly"])
def test_a_peft_model_in_memory_whose_verdicts_would_be_false_is_refused(name: str) -> None:
    tuned = peft.get_peft_model(tiny.model("llama"), (peft_types.REFUSED)[name]())
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    with pytest.raises(AdapterError, match="The PEFT model is "):
        memlaw.recall(tuned, tiny.tokenizer(), facts(*GOOD), decode=False)


def test_the_cause_of_an_error_is_not_its_heading() -> None:
    assert cause(RuntimeError("Error(s) in loading:\n\tsize mismatch for a: x.\n\tsize mismatch for b: y.")) == (
        "size mismatch for a: x (and 1 more)"
    )
    assert cause(ValueError("one\ntwo")) == "one"
    assert cause(ValueError("")) == "ValueError"


@pytest.mark.parametrize("trained", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("judged", ["float32", "float16", "bfloat16"])
def test_the_right_base_is_the_right_base_in_every_precision_it_was_saved_for(
    trained: str, judged: str, tmp_path: Path
) -> None:
    tiny.model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    base = load(str(tmp_path / "base"), dtype=trained, device="cpu")
    placement = placement_on("down_proj@2", base.model)
    save(adapters.trained(placement), placement, base, tmp_path / "a")
    with attach(load(str(tmp_path / "base"), dtype=judged, device="cpu"), tmp_path / "a") as faults:
        assert not faults


def test_a_quantised_copy_is_called_one_and_can_be_allowed(tmp_path: Path) -> None:
    quantised = packed.model()
    ordinary = tiny.wrap(packed.unpacked(quantised), tiny.tokenizer())
    quantised.is_quantized, quantised.quantization_method = True, packed.METHOD
    placement = placement_on("down_proj@2", ordinary.model)
    save(adapters.trained(placement), placement, ordinary, tmp_path / "a")
    copy = tiny.wrap(quantised, tiny.tokenizer())
    expected = r"weights are quantised .*--allow-other-base"
    with pytest.raises(AdapterFaultError, match=expected), attach(copy, tmp_path / "a"):
        pass
    with attach(copy, tmp_path / "a", Allow(other_base=True)) as (fault,):
        assert "are quantised" in fault.message
