"""The sides of the benchmarks of training: memlaw's stack, PEFT as anybody would use it, and the published step.

An *arm* trains one adapter: it comes as its loss on a batch and the parameters that train, on a frozen base, and takes
its start from the numbers memlaw starts with. So all sides must train the same, and are held to it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch
from common import report, rounded
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from memlaw.adapter.on_model import placement_on
from memlaw.adapter.placement import Placement
from memlaw.adapter.stack import AdapterStack
from memlaw.core.config import Execution, TrainConfig
from memlaw.core.facts import EncodedFact
from memlaw.losses import IGNORED
from memlaw.model.base import Base, fingerprint
from memlaw.training.result import StackProgress
from memlaw.training.run import Run
from memlaw.training.stack import train_stack

Batch = tuple[Tensor, Tensor]
"""Right-padded tokens [rows, time] and their labels, IGNORED where there is no target."""


@dataclass(frozen=True)
class Arm:
    loss: Callable[[Batch], Tensor]
    parameters: list[nn.Parameter]


StartArm = Callable[[Any, Placement, int, TrainConfig], AbstractContextManager[Arm]]
"""start(model, placement, rank, config): the arm of one adapter, which leaves the model as it was."""


def random_base(width: int, layers: int, vocabulary: int) -> Base:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    return Base(model, None, "random", fingerprint(model), "none", "float32", "cpu", None)


def random_fact(tokens: int, vocabulary: int) -> EncodedFact:
    """A target of random tokens behind a prompt of four."""
    stream = torch.Generator().manual_seed(1)
    return EncodedFact("row", tuple(torch.randint(0, vocabulary, (4 + tokens,), generator=stream).tolist()), 4)


def batch_of(facts: Iterable[EncodedFact]) -> Batch:
    chosen = list(facts)
    ids = torch.zeros(len(chosen), max(len(fact.ids) for fact in chosen), dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, fact in enumerate(chosen):
        ids[row, : len(fact.ids)] = torch.tensor(fact.ids)
        labels[row, fact.prompt_length : len(fact.ids)] = torch.tensor(fact.target)
    return ids, labels


# --- arms ---


@contextmanager
def peft_arm(model: Any, placement: Placement, rank: int, config: TrainConfig) -> Iterator[Arm]:
    """What anybody would write: the model's forward, cross-entropy over the target."""
    a, _ = _start(placement, rank, config)
    tuned = get_peft_model(model, LoraConfig(**placement.lora_config(rank, scale=config.scale)))
    try:
        with torch.no_grad():
            module = tuned.get_submodule(f"base_model.model.{placement.sites[0].path}")
            module.lora_A["default"].weight.copy_(a.T)
        yield Arm(lambda batch: _loss(tuned, batch), [p for p in tuned.parameters() if p.requires_grad])
    finally:
        tuned.unload()


@contextmanager
def published_arm(model: Any, placement: Placement, rank: int, config: TrainConfig) -> Iterator[Arm]:
    """The published step (zjunlp/ParametricMemoryLaw), reimplemented from its description, not that code itself.

    The product A B is made as a dense matrix, and at every step a second forward without the adapter takes a loss that
    is only logged. At memlaw's placement, so that all sides train the same.
    """
    a, b = (nn.Parameter(start) for start in _start(placement, rank, config))
    attached = True

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + args[0] @ (a @ b) * config.scale if attached else output

    def loss(batch: Batch) -> Tensor:
        nonlocal attached
        attached = False
        with torch.no_grad():
            _loss(model, batch)
        attached = True
        return _loss(model, batch)

    handle = model.get_submodule(placement.sites[0].path).register_forward_hook(add)
    try:
        yield Arm(loss, [a, b])
    finally:
        handle.remove()


def _start(placement: Placement, rank: int, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """A [d_in, rank] and B [rank, d_out] of the only site, as memlaw starts them."""
    assert len(placement.sites) == 1
    ((a, b),) = AdapterStack.start(placement.sites, [(rank, config)], device="cpu", dtype="float32").pairs
    return a[0], b[0]


def _loss(model: Any, batch: Batch) -> Tensor:
    ids, labels = batch
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


@dataclass
class Taken:
    """Process CPU time of each step taken, and the loss it started from."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def train(arm: Arm, config: TrainConfig, batches: Iterable[Batch], steps: int) -> Taken:
    """The first `steps` of the training that `config` describes: SFT with AdamW, clipping, a falling step size."""
    taken = Taken()
    optimizer = torch.optim.AdamW(arm.parameters, lr=config.learning_rate, weight_decay=0.0)
    for step, batch in zip(range(steps), batches, strict=False):
        begun = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.steps)
        optimizer.zero_grad()
        loss = arm.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(arm.parameters, config.clip)
        optimizer.step()
        taken.seconds.append(time.process_time() - begun)
        taken.losses.append(loss.item())
    return taken


# --- a stack against one by one ---

CASES = [(64, 6, 32, 32), (128, 6, 64, 16), (256, 12, 512, 4)]
"""Width, layers, target tokens, adapters."""
RANK, VOCABULARY, STEPS, WARM = 8, 1024, 8, 2


def against(other: str, start: StartArm, description: str | None) -> None:
    """Print the lines of the benchmark probe_vs_`other`: a step of K adapters as a stack, and one after another."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="memlaw's upper layers, as its option of that name does")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        _compare(*case, given.repeats, other, start, given.compile)


def _compare(
    width: int, layers: int, tokens: int, count: int, repeats: int, other: str, start: StartArm, compiled: bool
) -> None:
    base = random_base(width, layers, VOCABULARY)
    placement = placement_on(None, base.model)
    fact = random_fact(tokens, VOCABULARY)
    ours, theirs, worst = [], [], 0.0
    for _ in range(repeats):
        seconds, losses = _stacked(base, fact, placement, count, compiled)
        ours.append(seconds)
        seconds, other_losses = _one_by_one(base, fact, placement, count, start)
        theirs.append(seconds)
        worst = max(worst, *(abs(a / b - 1) for a, b in zip(losses, other_losses, strict=True)))
    if worst > 1e-4:
        raise SystemExit(f"The two sides do not train the same: losses differ by {worst:.1e}.")
    mine, its = statistics.median(ours), statistics.median(theirs)
    report(
        f"probe_vs_{other}", f"d{width} layers{layers} tokens{tokens} K{count}", its / mine,
        memlaw_ms=rounded(1e3 * mine), **{f"{other}_ms": rounded(1e3 * its)},
        repeats=repeats, compiled=compiled, loss_difference=rounded(worst),
    )  # fmt: skip


def _stacked(
    base: Base, fact: EncodedFact, placement: Placement, count: int, compiled: bool
) -> tuple[float, list[float]]:
    """Seconds of one step of the whole stack, and each adapter's loss at the end. Start-up is not counted."""
    marks: list[float] = []

    def mark(_progress: StackProgress) -> None:
        marks.append(time.process_time())

    runs = [Run(RANK, placement, TrainConfig(steps=WARM + STEPS, seed=seed)) for seed in range(count)]
    trained = train_stack(base, [fact], runs, execution=Execution(compiled=compiled), on_step=mark)
    return (marks[-1] - marks[WARM - 1]) / STEPS, [float(t.loss_final or 0) for t in trained]


def _one_by_one(
    base: Base, fact: EncodedFact, placement: Placement, count: int, start: StartArm
) -> tuple[float, list[float]]:
    """Seconds of one step of all `count` adapters, trained one after another, and their losses at the end."""
    total, losses, batch = 0.0, [], batch_of([fact])
    for seed in range(count):
        config = TrainConfig(steps=WARM + STEPS, seed=seed)
        with start(base.model, placement, RANK, config) as arm:
            total += sum(train(arm, config, repeat(batch), WARM + STEPS).seconds[WARM:])
            with torch.no_grad():
                losses.append(float(arm.loss(batch)))
    return total / STEPS, losses
