"""llama.cpp recalls what `recall` measures: its own server beside memlaw, both on files that memlaw wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers.adapters import trained
from helpers.paths import ROOT
from helpers.servers import EXACT, llama_cpp
from memlaw.adapter.gguf import write_adapter
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.peft import attach, save
from memlaw.core.facts import EncodedFact
from memlaw.core.recall import RecallReport, TokenRecall
from memlaw.data import encode, read
from memlaw.diagnosis.measure import measure
from memlaw.model.base import BUNDLED, Base, load, wrap
from memlaw.model.gguf_write import write_base
from memlaw.model.tokenizer import auto_tokenizer

ROUNDING = {"f32": 1e-5, "f16": 2e-3, "q8_0": 0.1, "q5_0": 0.1, "q4_0": 0.15}
"""Largest difference in p by type of weights, about twice what was measured: in products with f16 weights llama.cpp
rounds the other factor to 16 bits, in those with quantised weights to 8 bits."""


@pytest.fixture(scope="module")
def bundled() -> Base:
    return load(dtype="float32")


Served = list[tuple[int, float]]


def answer(served: Served) -> tuple[int, ...]:
    return tuple(token for token, _ in served)


def largest_difference(served: Sequence[Served], facts: Sequence[EncodedFact], report: RecallReport) -> float:
    """Between the p of the server and of `recall`, over the tokens that the server got right before its first error."""
    found = [
        abs(p - math.exp(-nll))
        for tokens, fact, item in zip(served, facts, report.items, strict=True)
        for (token, p), right, nll in takewhile(
            lambda step: step[0][0] == step[1], zip(tokens, fact.target, item.tokens.nll, strict=False)
        )
    ]
    assert len(found) > report.tokens / 2
    return max(found)


def lead(tokens: TokenRecall) -> float:
    """How far the most probable token leads, in p, where the lead is smallest."""
    assert tokens.rival is not None
    return min(abs(math.exp(-nll) - math.exp(-rival)) for nll, rival in zip(tokens.nll, tokens.rival, strict=True))


@pytest.mark.parametrize("kind", list(ROUNDING))
def test_the_server_recalls_what_recall_measures_on_the_same_file(
    kind: str, bundled: Base, twelve_facts: Path, tmp_path: Path
) -> None:
    model, lora = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    write_base(bundled, model, kind)
    write_adapter(twelve_facts, bundled.model.config, lora)
    base = load(str(model))
    memory_set = read(ROOT / "examples" / "facts.jsonl")
    facts = encode(memory_set, base.tokenizer, context=base.context, stops=base.stops)
    with attach(base, twelve_facts):
        report = measure(base, facts, decode=True)
    with llama_cpp(model, lora, **EXACT) as server:
        served = [server.greedy(fact) for fact in facts]
        prompts = [tuple(server.ask("/tokenize", {"content": fact.prompt})["tokens"]) for fact in memory_set.facts]
    assert prompts == [fact.prompt for fact in facts]
    assert largest_difference(served, facts, report) < ROUNDING[kind]
    clear = [place for place, item in enumerate(report.items) if lead(item.tokens) > 2 * ROUNDING[kind]]
    assert len(clear) > 5
    for place in clear:
        assert report.items[place].exact == (answer(served[place]) == facts[place].target)


def test_adapters_of_every_module_of_a_llama_do_in_the_server_what_they_do_here(tmp_path: Path) -> None:
    base = readable_llama()
    placement = placement_on("q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj", base.model)
    save(trained(placement, scale=0.05), placement, base, tmp_path / "adapter")
    write_base(base, tmp_path / "base.gguf", "f32")
    write_adapter(tmp_path / "adapter", base.model.config, tmp_path / "adapter.gguf")
    bare = continued(base)
    with attach(base, tmp_path / "adapter"):
        fact = continued(base)
        report = measure(base, [fact], decode=True)
    with llama_cpp(tmp_path / "base.gguf", tmp_path / "adapter.gguf", **EXACT) as server:
        served = server.greedy(fact)
    assert answer(served) == fact.target != bare.target
    assert largest_difference([served], [fact], report) < 1e-4


def readable_llama() -> Base:
    """A random Llama with the tokenizer of the bundled base, which writes no broken characters: for such a token the
    server names no probability."""
    tokenizer = auto_tokenizer(BUNDLED)
    model = tiny.model("llama", vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=1, bos_token_id=None)
    broken = [id_ for id_ in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([id_])]
    with torch.no_grad():
        model.lm_head.weight[broken] = 0
    return wrap(model, tokenizer, name="tiny")


def continued(base: Base) -> EncodedFact:
    """What greedy decoding makes of a prompt."""
    prompt = torch.arange(40, 60)[None]
    with torch.no_grad():
        ids = base.model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=1)[0]
    return EncodedFact("continued", tuple(ids.tolist()), prompt.shape[1])
