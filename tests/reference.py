"""Slow plain definitions that the fast code is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from memlaw.adapter import AdapterStack, Placement
from memlaw.records import LN2, EncodedFact, TrainConfig


def nll_of(model: torch.nn.Module, fact: EncodedFact) -> torch.Tensor:
    """-log p of each target token of one fact, one full forward, nothing padded."""
    logits = model(input_ids=torch.tensor([fact.ids])).logits[0].double()
    return F.cross_entropy(logits[fact.prompt_length - 1 : -1], torch.tensor(fact.target), reduction="none")


def greedy(model: torch.nn.Module, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy decoding with a whole forward for every token: no cache, no batch."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def train_with_peft(
    model: torch.nn.Module,
    facts: Sequence[EncodedFact],
    placement: Placement,
    rank: int,
    config: TrainConfig,
    *,
    batches: Sequence[Sequence[int]],
) -> tuple[torch.nn.Module, list[float]]:
    """One adapter, trained as anybody would: PEFT, torch.optim.AdamW, clip_grad_norm_, one fact after the other.

    Starts from the same weights as the stack. Returns the PEFT model and the loss before each step.
    """
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(model, LoraConfig(**placement.lora_config(rank, scale=config.scale)))
    start = AdapterStack.start(placement.sites, [(rank, config)], device="cpu", dtype="float64")
    for site, (a, b) in zip(start.sites, start.pairs, strict=True):
        module = tuned.get_submodule(f"base_model.model.{site.path}")
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(a[0].T)
            module.lora_B["default"].weight.copy_(b[0].T)
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for step, batch in enumerate(batches):
        nll = torch.cat([nll_of(tuned, facts[row]) for row in batch])
        losses.append(float(nll.detach().mean()))
        active = torch.ones_like(nll) if config.method == "sft" else (nll.detach() >= LN2 - config.margin).to(nll)
        if config.rule == "fallback" and not active.any():
            active = torch.ones_like(nll)
        optimizer.zero_grad()
        ((active * nll).sum() / (active.sum() + 1e-8)).backward()
        if config.clip:
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.steps if config.schedule == "linear" else 1)
        optimizer.step()
    return tuned, losses
