"""From what a trainer's model gives for a batch to the MemFT loss of the step that the batch is part of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from memlaw.core.errors import ConfigError
from memlaw.integrations.refusals import check_packing
from memlaw.integrations.samples import sample_ids, share_windows
from memlaw.integrations.step import StepMean
from memlaw.losses import MemFT, MemFTSums, WindowState, memft_sums, memft_token_sums


class StepLoss:
    """MemFT over the steps of one trainer. The gradient is the same for any split into micro-batches and processes."""

    def __init__(self, memft: MemFT) -> None:
        if memft.method == "curriculum":
            raise ConfigError(
                "Method curriculum is the loss of ot on a growing share of the samples, which a loss cannot choose: "
                "use method ot, and use_curriculum(trainer, boundaries=...) for the samples."
            )
        self.memft = memft
        self.windows = WindowState() if memft.method == "sw" else None
        self.mean = StepMean(memft.rule)

    def of(self, outputs: Any, labels: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The loss of one micro-batch in training, where processes average their gradients (`StepMean.add`).

        `outputs` have `logits` [batch, time, vocab], or TRL's `log_probs` and `is_top1` [batch, time - 1] of labels
        [:, 1:]. `inputs` are what the model was given: `position_ids` where samples are packed, `input_ids` for sw.
        """
        ids = None if self.windows is None else sample_ids(inputs, labels)
        sums = self.sums(outputs, labels, inputs, ids)
        if self.windows is not None and ids is not None:
            share_windows(self.windows, ids)
        return self.mean.add(sums)

    def sums(self, outputs: Any, labels: Tensor, inputs: Mapping[str, Any], ids: Tensor | None = None) -> MemFTSums:
        check_packing(inputs)
        settings: dict[str, Any] = {
            **asdict(self.memft),
            "position_ids": inputs.get("position_ids"),
            "sample_ids": ids,
            "state": None if ids is None else self.windows,
        }
        log_probs = getattr(outputs, "log_probs", None)
        if log_probs is None:
            return memft_sums(_logits(outputs, labels), labels, **settings)
        if log_probs.shape != labels[:, 1:].shape:
            raise ConfigError(
                f"The model gave log-probabilities of {list(log_probs.shape)} tokens for labels of "
                f"{list(labels.shape)}: prompt learning and shifted labels are none of MemFT's. Train a LoRA adapter."
            )
        nll, hit = F.pad(-log_probs, (0, 1)), F.pad(outputs.is_top1.bool(), (0, 1))
        return memft_token_sums(nll, hit, labels, **settings)


def _logits(outputs: Any, labels: Tensor) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape:
        found = f"logits of {list(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise ConfigError(
            f"The model's forward gave {found} for labels of {list(labels.shape)}, and MemFT weighs every token by its "
            "own loss. Unsloth hides the logits: set the environment variable UNSLOTH_RETURN_LOGITS=1 before importing "
            "it. Turn off fused cross-entropies (Liger) and prompt learning."
        )
    return logits
