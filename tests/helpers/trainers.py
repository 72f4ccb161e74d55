"""A small model with an adapter, rows of different lengths, and the gradients that a trainer's optimizer gets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from helpers import tiny
from memlaw.losses import IGNORED, memft_loss

LENGTHS = [(5, 1), (3, 9), (7, 4), (2, 12), (6, 2), (4, 7), (8, 3), (3, 5)]
"""(prompt, target) tokens of the rows: 43 targets, between 1 and 12 a row."""

LONG = [(3, 70), (5, 1), (2, 90), (6, 4), (4, 65), (3, 9), (5, 80), (2, 7)]
"""Rows whose tails lie beyond the window of sw until it widens."""

Row = dict[str, list[int]]


def rows(lengths: list[tuple[int, int]] = LENGTHS) -> list[Row]:
    """Rows in training form, of random tokens."""
    return [
        {"input_ids": list(fact.ids), "labels": [IGNORED] * fact.prompt_length + list(fact.target)}
        for fact in tiny.facts(lengths)
    ]


def adapted(family: str = "qwen3", **changes: Any) -> Any:
    """A PEFT model with a random adapter, in double precision and without dropout: so the shape of a batch changes
    results by far less than any tolerance here."""
    base = tiny.model(family, dtype=torch.float64, **changes)
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(base, config, autocast_adapter_dtype=False).double()


def padded(batch: list[Row]) -> dict[str, Tensor]:
    """A collator: right padding, with an attention mask."""
    time = max(len(row["input_ids"]) for row in batch)

    def column(name: str, filler: int) -> Tensor:
        return torch.tensor([row[name] + [filler] * (time - len(row[name])) for row in batch])

    lengths = torch.tensor([len(row["input_ids"]) for row in batch])
    mask = (torch.arange(time) < lengths[:, None]).long()
    return {"input_ids": column("input_ids", 0), "labels": column("labels", IGNORED), "attention_mask": mask}


def flattened(batch: list[Row]) -> dict[str, Tensor]:
    """A collator: all rows as one, separated by their position_ids."""
    joined = {name: torch.tensor([[t for row in batch for t in row[name]]]) for name in ("input_ids", "labels")}
    positions = [place for row in batch for place in range(len(row["input_ids"]))]
    return {**joined, "position_ids": torch.tensor([positions])}


class Gradients(TrainerCallback):
    """The gradients that the optimizer gets at every step, and the losses that are logged."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def arguments(out: Path, accumulation: int, **changes: Any) -> dict[str, Any]:
    """Arguments for one step over all rows in `accumulation` micro-batches, without clipping, on the CPU."""
    settings = {
        "output_dir": str(out),
        "per_device_train_batch_size": len(LENGTHS) // accumulation,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return {**settings, **changes}


def trainer(out: Path, accumulation: int = 1, *, collator: Any = padded, model: Any = None, data: Any = None,
            loss: Any = None, callbacks: Any = (), **changes: Any) -> Trainer:  # fmt: skip
    return Trainer(
        model=model or adapted(),
        args=TrainingArguments(**arguments(out, accumulation, **changes)),
        train_dataset=rows() if data is None else data,
        eval_dataset=rows(),
        data_collator=collator,
        compute_loss_func=loss,
        callbacks=list(callbacks),
    )


def token_losses(batch: list[Row]) -> list[float]:
    """The loss of every target token, row by row."""
    inputs = padded(batch)
    labels = inputs.pop("labels")
    with torch.no_grad():
        losses = memft_loss(adapted().train()(**inputs).logits, labels, reduction="none", method="sft")
    return losses[labels != IGNORED].tolist()


def whole_batch(batch: list[Row], model: Any = None, **settings: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of rows as one batch, by `memft_loss` without any trainer."""
    model = (model or adapted()).train()
    inputs = padded(batch)
    labels = inputs.pop("labels")
    model.zero_grad()
    loss = memft_loss(model(**inputs).logits, labels, **settings)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def middle_threshold(batch: list[Row]) -> float:
    """A probability that about half of the target tokens reach."""
    losses = sorted(token_losses(batch))
    return math.exp(-(losses[len(losses) // 2 - 1] + losses[len(losses) // 2]) / 2)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Equal up to a tolerance relative to the largest entry of the whole gradient, which is not 0."""
    assert found.keys() == wanted.keys()
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    assert scale > 0
    for name, gradient in wanted.items():
        assert (found[name] - gradient).abs().max().item() <= tolerance * scale, name
