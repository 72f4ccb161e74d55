"""Rows 37 to 41 of the fault matrix: an adapter that is not what it was, and a recall that rounding would decide."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memlaw
from helpers import tiny
from helpers.faulty import FACTS
from memlaw.adapter.peft import attach
from memlaw.core.errors import AdapterError
from memlaw.core.facts import Fact, MemorySet
from memlaw.core.precision import TOLERANCE
from memlaw.core.recall import LN2, RecallReport
from memlaw.diagnosis.measure import SAFETY

CONFIG = {"rank": 8, "placement": "all-linear", "steps": 400}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until all of FACTS are recalled, with margins from 0.1 nats up."""
    base, out = tiny.base(), tmp_path_factory.mktemp("adapter") / "A"
    assert memlaw.train(base.model, base.tokenizer, FACTS, out=out, **CONFIG).recalled
    return out


def recalled(adapter: Path, seed: int = 0) -> RecallReport:
    base = tiny.base(seed=seed)
    return memlaw.recall(base.model, base.tokenizer, FACTS, adapter=adapter)


def test_37_adapter_of_another_base(adapter: Path) -> None:
    assert recalled(adapter).certified == len(FACTS.facts)
    with pytest.raises(AdapterError, match=r"was trained on another base .* it would give other text without any"):
        recalled(adapter, seed=1)


@pytest.mark.parametrize("damage", ["truncated", "first bit", "middle bit", "last bit"])
def test_38_truncated_or_flipped_adapter(adapter: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(adapter, tmp_path / "A")
    weights = copy / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[{"first bit": 0, "middle bit": len(content) // 2, "last bit": -1}[damage]] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AdapterError, match=r"is not the file that was saved \(its SHA-256 differs\)"):
        recalled(copy)


@contextmanager
def disturbed(model: Any, disturb: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The model with its logits [rows, time, vocabulary] disturbed."""
    handle = model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: disturb(logits))
    try:
        yield
    finally:
        handle.remove()


def judged_under(adapter: Path, disturb: Callable[[Tensor], Tensor]) -> RecallReport:
    """Recall under an adapter, with logits that are disturbed only while it is judged: attaching compares with PEFT."""
    base = tiny.base()
    with attach(base, adapter), disturbed(base.model, disturb):
        return memlaw.recall(base.model, base.tokenizer, FACTS)


def assert_doubted(report: RecallReport) -> None:
    """Every record is verbatim, and those that the difference seen could turn are not certified, with the reason."""
    assert report.acc_em == 1.0
    assert report.rounding is not None
    assert report.tolerance == SAFETY * report.rounding > TOLERANCE["float32"]
    thin = [item for item in report.items if item.margin <= report.tolerance]
    assert thin
    assert report.certified == len(FACTS.facts) - len(thin)
    assert {item.reason for item in thin} == {"too_thin"}


def test_39_bf16_against_cached_decoding(adapter: Path) -> None:
    base = tiny.base(dtype=torch.bfloat16)
    rounded = memlaw.recall(base.model, base.tokenizer, FACTS, adapter=adapter)
    assert rounded.dtype == "bfloat16"
    assert rounded.rounding is not None
    assert rounded.tolerance == max(TOLERANCE["bfloat16"], SAFETY * rounded.rounding)
    assert all(item.margin > rounded.tolerance for item in rounded.items if item.certified)
    # As much as bfloat16 can make of it: one token at a time, logits come out a fifth smaller than teacher-forced.
    assert_doubted(judged_under(adapter, lambda logits: logits * (0.8 if logits.shape[1] == 1 else 1.0)))


@pytest.mark.parametrize("ahead", [False, True])
def test_40_tie_at_one_half(ahead: bool) -> None:
    """Two tokens of p = 1/2 each: greedy decoding emits the first of them, and that proves nothing."""
    base = tiny.base()
    low, high = (base.tokenizer.convert_tokens_to_ids(text) for text in "ab")

    def tie(logits: Tensor) -> Tensor:
        tied = torch.full_like(logits, -1e4)
        tied[..., [low, high]] = 0.0
        return tied

    facts = MemorySet((Fact("Which one?", "aaa" if ahead else "bbb", "tie"),), eos=False, source="tie")
    with disturbed(base.model, tie):
        (item,) = (report := memlaw.recall(base.model, base.tokenizer, facts)).items
    assert item.tokens.nll == pytest.approx([LN2] * 3, abs=1e-7)
    assert item.exact is ahead
    assert (report.ordered, report.certified, item.certified) == (0, 0, False)
    assert item.reason == ("unproven" if ahead else "stubborn")


def test_41_result_that_shifts_with_the_batch_size(adapter: Path) -> None:
    """Certified in company, but not alone, is not certified: the thinnest are decoded once more, each by itself."""
    assert recalled(adapter).certified == len(FACTS.facts)
    assert_doubted(judged_under(adapter, lambda logits: logits * (0.8 if len(logits) == 1 else 1.0)))
