from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import memlaw
from helpers import tiny
from helpers.checks import GOOD, codes, facts, findings_of, the_one
from memlaw.adapter import peft
from memlaw.api import check_on
from memlaw.core.errors import AdapterError
from memlaw.diagnosis.lint.model import BARELY
from memlaw.model.base import Base, wrap
from memlaw.model.head import frozen_head
from memlaw.model.reach import reach


def with_row(row: torch.Tensor, token: int) -> Base:
    model = tiny.model()
    with torch.no_grad():
        model.get_output_embeddings().weight[token] = row
    return wrap(model, tiny.tokenizer())


def test_tokens_no_adapter_can_order_are_named_by_position(base: Base) -> None:
    (token,) = base.tokenizer.encode("z", add_special_tokens=False)
    judged = with_row(torch.zeros(32), token)  # its logit is 0 whatever the hidden state, and some other's is above
    finding = the_one(check_on(judged, facts(("a", "xzyz"), ("b", "xy"))), "unreachable-token")
    assert (finding.record, finding.severity, finding.positions) == ("1", "error", (1, 3))
    assert "2 of its 5 target tokens (first at position 1)" in finding.message
    assert "Reword the target" in finding.fix
    assert not findings_of(check_on(base, facts(("a", "xzyz"))), "unreachable-token")


def test_a_token_just_above_one_half_is_a_warning(base: Base) -> None:
    (token,) = base.tokenizer.encode("z", add_special_tokens=False)
    direction = base.model.get_output_embeddings().weight[token].detach()
    low, high = 0.0, 1.0
    for _ in range(30):  # the shorter its row, the less of the probability a token can have
        middle = (low + high) / 2
        judged = with_row(middle * direction, token)
        attained = float(reach(frozen_head(judged.model), [token])[0])
        if 0.51 < attained < BARELY - 0.01:
            break
        low, high = (middle, high) if attained < 0.51 else (low, middle)
    finding = the_one(check_on(judged, facts(("a", "xz"))), "barely-reachable")
    assert (finding.severity, finding.positions) == ("warning", (1,))


def test_a_head_of_no_known_form_is_said_and_the_rest_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = tiny.base()
    judged.model.model.norm = torch.nn.Sequential(judged.model.model.norm, torch.nn.Tanh())
    report = check_on(judged, facts(("a", "x"), ("A", "y")))
    assert the_one(report, "reach-unknown").severity == "info"
    assert findings_of(report, "near-duplicate")


def test_a_tied_head_is_said() -> None:
    finding = the_one(check_on(tiny.base("llama-tied"), facts(*GOOD)), "base")
    assert "its input embedding" in finding.message


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lint") / "A"
    memlaw.train(base.model, base.tokenizer, facts(*GOOD), rank=32, steps=3, until="budget", out=out)
    return out


def test_an_adapter_in_order_has_no_findings_and_one_of_other_facts_is_told(base: Base, adapter: Path) -> None:
    assert codes(check_on(base, facts(*GOOD), adapter=adapter)) == set()
    report = check_on(base, facts(*GOOD, eos=False), adapter=adapter)
    assert codes(report) == {"no-eos", "adapter-of-other-facts"}


def test_an_adapter_of_another_base_is_a_finding(adapter: Path) -> None:
    finding = the_one(check_on(tiny.base(seed=1), facts(*GOOD), adapter=adapter), "adapter-of-another-base")
    assert finding.severity == "error"
    assert "tiny-qwen3" in finding.message


def peft_adapter(source: Path, copy: Path, *, scaled: float) -> Path:
    """The adapter as PEFT alone would have written it, B multiplied by `scaled`."""
    copy.mkdir()
    (copy / peft.PEFT_CONFIG).write_text((source / peft.PEFT_CONFIG).read_text())
    tensors = {
        name: tensor * scaled if "lora_B" in name else tensor
        for name, tensor in load_file(source / peft.WEIGHTS).items()
    }
    save_file(tensors, copy / peft.WEIGHTS, metadata={"format": "pt"})
    return copy


def test_an_adapter_that_changes_nothing_is_an_error(base: Base, adapter: Path, tmp_path: Path) -> None:
    zero = peft_adapter(adapter, tmp_path / "zero", scaled=0.0)
    finding = the_one(check_on(base, facts(*GOOD), adapter=zero), "adapter-is-zero")
    assert finding.severity == "error"
    alive = peft_adapter(adapter, tmp_path / "alive", scaled=1.0)
    assert codes(check_on(base, facts(*GOOD), adapter=alive)) == set()


def test_a_directory_that_is_no_adapter_stays_an_error(base: Base, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter directory .* does not exist"):
        check_on(base, facts(*GOOD), adapter=tmp_path / "none")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterError, match="a pickle that could run code"):
        check_on(base, facts(*GOOD), adapter=tmp_path)
