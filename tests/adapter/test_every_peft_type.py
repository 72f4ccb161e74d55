"""Every adapter that PEFT can make: judged as PEFT judges it, or refused; and gone afterwards, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, PeftType

from helpers import peft_types, tiny
from helpers.fingerprints import everything
from memlaw.adapter.info import AdapterFaultError
from memlaw.adapter.peft import attach
from memlaw.diagnosis.teacher_forced import teacher_forced
from memlaw.model.base import Base, wrap

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT warns of its own settings

FACTS = tiny.facts([(4, 12), (3, 9)])


def losses(model: Any) -> list[torch.Tensor]:
    """Loss of every target token by the model's own forward pass, one fact at a time."""
    results = []
    for fact in FACTS:
        ids = torch.tensor([fact.ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, fact.prompt_length - 1 : -1]
        results.append(F.cross_entropy(logits, ids[0, fact.prompt_length :], reduction="none"))
    return results


def judged(base: Base) -> list[torch.Tensor]:
    with torch.no_grad():
        return [torch.tensor(tokens.nll) for tokens in teacher_forced(base, FACTS)]


@pytest.mark.parametrize("name", peft_types.JUDGED)
def test_an_adapter_is_judged_as_by_peft_and_leaves_no_trace(name: str, tmp_path: Path) -> None:
    family = peft_types.family(name)
    directory = peft_types.made(name, tmp_path / "a")
    expected = losses(PeftModel.from_pretrained(tiny.model(family), str(directory)).eval())
    model = tiny.model(family)
    base = wrap(model, tiny.tokenizer())
    before, bare = everything(model), judged(base)
    for _ in range(2):
        with attach(base, directory):
            measured = judged(base)
        for ours, theirs, without in zip(measured, expected, bare, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
            assert not torch.allclose(ours, without, atol=1e-3)
        assert everything(model) == before
        assert all(torch.equal(*pair) for pair in zip(judged(base), bare, strict=True))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("prompt-tuning", "of the type PROMPT_TUNING, which adds virtual tokens in PEFT's wrapper"),
        ("prefix-tuning", "of the type PREFIX_TUNING, which adds virtual tokens"),
        ("p-tuning", "of the type P_TUNING, which adds virtual tokens"),
        ("multitask-prompt-tuning", "of the type MULTITASK_PROMPT_TUNING, which adds virtual tokens"),
        ("cpt", "of the type CPT, which adds virtual tokens"),
        ("cartridge", "of the type CARTRIDGE, which adds virtual tokens"),
        ("alora", r"an activated LoRA \(aLoRA\)"),
        ("lora-pissa-niter", "a PiSSA by randomised SVD"),
        ("lily", "of the type LILY, which mixes its experts by the mean over all tokens"),
        ("poly", r"of the type POLY, which PEFT cannot run on token ids alone \(task_ids should not be None"),
    ],
)
def test_an_adapter_that_the_base_alone_cannot_show_is_refused_by_name(name: str, why: str, tmp_path: Path) -> None:
    directory = peft_types.made(name, tmp_path / "a")
    base = tiny.base("llama")
    before = everything(base.model)
    message = f"{why}.*Train a LoRA|{why}.*Convert it to a LoRA"
    with pytest.raises(AdapterFaultError, match=message) as refused, attach(base, directory):
        pass
    assert refused.value.code == "adapter-cannot-be-judged"
    assert everything(base.model) == before


def test_no_type_of_the_installed_peft_is_left_out() -> None:
    tried = {make().peft_type.value for make in (peft_types.JUDGED | peft_types.REFUSED).values()}
    assert tried.isdisjoint(peft_types.UNTRIED)
    assert tried | set(peft_types.UNTRIED) == {kind.value for kind in PeftType}
