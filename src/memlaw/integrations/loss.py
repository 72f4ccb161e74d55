"""From the outputs of a trainer's model for one batch to the MemFT loss of the optimizer step."""

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
    """MemFT over the steps of one trainer. Micro-batches and processes do not change the gradient of a step."""

    def __init__(self, memft: MemFT) -> None:
        if memft.method == "curriculum":
            raise ConfigError(
                "Method curriculum is the loss of ot on a growing share of the samples, and a loss cannot select "
                "samples: use method ot, and use_curriculum(trainer, boundaries=...)."
            )
        self.memft = memft
        self.windows = WindowState() if memft.method == "sw" else None
        self.mean = StepMean(memft.rule)

    def of_micro_batch(self, outputs: Any, labels: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The loss of one micro-batch in training, for processes that average their gradients (`StepMean.add`).

        `outputs` have `logits` [batch, time, vocab], or the `log_probs` and `is_top1` [batch, time - 1] of TRL, for
        labels[:, 1:]. `inputs` are those of the model: `position_ids` if samples are packed, `input_ids` for sw.
        """
        ids = None if self.windows is None else sample_ids(inputs, labels)
        sums = self.sums(outputs, labels, inputs, ids)
        if self.windows is not None and ids is not None:
            share_windows(self.windows, ids)
        return self.mean.add(sums)

    def sums(self, outputs: Any, labels: Tensor, inputs: Mapping[str, Any], ids: Tensor | None = None) -> MemFTSums:
        """The sums of one batch; `ids` [batch, time] are the samples of its tokens, for sw."""
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
                f"The model returned log-probabilities of {list(log_probs.shape)} tokens for labels of "
                f"{list(labels.shape)}: MemFT does not support prompt learning and shifted labels. Train a LoRA "
                "adapter."
            )
        nll, hit = F.pad(-log_probs, (0, 1)), F.pad(outputs.is_top1.bool(), (0, 1))
        return memft_token_sums(nll, hit, labels, **settings)


def _logits(outputs: Any, labels: Tensor) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != labels.shape:
        returned = f"logits of {list(logits.shape)}" if isinstance(logits, Tensor) else "no logits"
        raise ConfigError(
            f"The model returned {returned} for labels of {list(labels.shape)}, but MemFT weighs every token by its "
            "own loss. For Unsloth, set the environment variable UNSLOTH_RETURN_LOGITS=1 before importing it. Turn off "
            "fused cross-entropies (Liger) and prompt learning."
        )
    return logits
