"""One step of a sweep: K adapters as one memlaw stack, against the same K adapters one after another in PEFT.

    python benchmarks/probe_vs_peft.py [--repeats 5]

Both sides train rank-8 LoRA on the MLP's output projection two thirds up, on one random row, from random weights, with
AdamW and clipping; their losses are compared before their times are. One thread, process CPU time, medians of
interleaved repeats, one JSON line a case. `ratio` above 1: memlaw is faster. `reference` repeats the published step
(zjunlp/ParametricMemoryLaw, reimplemented from its description: a second forward without the adapter at every step,
dense A B) in the same way.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import report, rounded
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from memlaw.adapter import AdapterStack, Placement, parse_placement
from memlaw.model import Base, fingerprint
from memlaw.records import EncodedFact, TrainConfig
from memlaw.training import StackProgress, train_stack

CASES = [(64, 6, 32, 32), (128, 6, 64, 16), (256, 12, 512, 4)]
"""Width, layers, target tokens, adapters."""
RANK, VOCABULARY, STEPS, WARM = 8, 1024, 8, 2


def build(width: int, layers: int) -> Base:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, head_dim=32, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    return Base(model, None, "random", fingerprint(model), "none", "float32", "cpu", None)


def stacked(base: Base, fact: EncodedFact, placement: Placement, count: int) -> tuple[float, list[float]]:
    """Seconds of one step of the whole stack, and each adapter's loss at the end. Start-up is not counted."""
    marks: list[float] = []

    def mark(_progress: StackProgress) -> None:
        marks.append(time.process_time())

    runs = [(RANK, TrainConfig(steps=WARM + STEPS, seed=seed)) for seed in range(count)]
    trained = train_stack(base, [fact], placement, runs, on_step=mark)
    return (marks[-1] - marks[WARM - 1]) / STEPS, [float(t.loss_final or 0) for t in trained]


def one_by_one(
    base: Base,
    fact: EncodedFact,
    placement: Placement,
    count: int,
    step: Callable[[Any, torch.Tensor, EncodedFact], Any],
) -> tuple[float, list[float]]:
    """Seconds of one step of all `count` adapters, trained by `step` one after another, and their final losses."""
    total, losses = 0.0, []
    row = torch.tensor([fact.ids])
    for seed in range(count):
        config = TrainConfig(steps=WARM + STEPS, seed=seed)
        tuned = get_peft_model(base.model, LoraConfig(**placement.lora_config(RANK, scale=config.scale)))
        start = AdapterStack.start(placement.sites, [(RANK, config)], device="cpu", dtype="float32")
        module = tuned.get_submodule(f"base_model.model.{placement.sites[0].path}")
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(start.pairs[0][0][0].T)
        parameters = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
        for index in range(WARM + STEPS):
            begun = time.process_time()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 - index / config.steps)
            optimizer.zero_grad()
            step(tuned, row, fact).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            total += (time.process_time() - begun) * (index >= WARM)
        with torch.no_grad():
            losses.append(float(peft_step(tuned, row, fact)))
        tuned.unload()
    return total / STEPS, losses


def peft_step(tuned: nn.Module, row: torch.Tensor, fact: EncodedFact) -> torch.Tensor:
    """What anybody would write: the model's forward, cross-entropy over the target."""
    logits = tuned(input_ids=row, use_cache=False).logits[0, fact.prompt_length - 1 : -1]
    return nn.functional.cross_entropy(logits, row[0, fact.prompt_length :])


def reference_step(tuned: Any, row: torch.Tensor, fact: EncodedFact) -> torch.Tensor:
    """The published step: the same, and a second forward without the adapter, whose loss is only logged."""
    with tuned.disable_adapter(), torch.no_grad():
        peft_step(tuned, row, fact)
    return peft_step(tuned, row, fact)


def compare(width: int, layers: int, tokens: int, count: int, repeats: int) -> None:
    base = build(width, layers)
    placement = parse_placement(None, base.model)
    stream = torch.Generator().manual_seed(1)
    fact = EncodedFact("row", tuple(torch.randint(0, VOCABULARY, (4 + tokens,), generator=stream).tolist()), 4)
    times: dict[str, list[float]] = {"memlaw": [], "peft": [], "reference": []}
    for _ in range(repeats):
        ours, our_losses = stacked(base, fact, placement, count)
        theirs, their_losses = one_by_one(base, fact, placement, count, peft_step)
        published, _ = one_by_one(base, fact, placement, count, reference_step)
        worst = max(abs(a / b - 1) for a, b in zip(our_losses, their_losses, strict=True))
        if worst > 1e-4:
            raise SystemExit(f"The two sides do not train the same: losses differ by {worst:.1e}.")
        for name, seconds in (("memlaw", ours), ("peft", theirs), ("reference", published)):
            times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    for other in ("peft", "reference"):
        report(
            f"probe_vs_{other}",
            f"d{width} layers{layers} tokens{tokens} K{count}",
            median[other] / median["memlaw"],
            memlaw_ms=rounded(1e3 * median["memlaw"]),
            **{f"{other}_ms": rounded(1e3 * median[other])},
            repeats=repeats,
            loss_difference=rounded(worst),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    for case in CASES:
        compare(*case, repeats)


if __name__ == "__main__":
    main()
