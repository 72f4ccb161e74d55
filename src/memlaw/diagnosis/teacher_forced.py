"""Teacher-forced losses of every target token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.core.facts import EncodedFact
from memlaw.core.recall import TokenRecall
from memlaw.diagnosis.verdicts import not_a_number
from memlaw.model.base import Base

LOGITS_BYTES = 256 * 2**20
"""Memory for the logits of one teacher-forced batch."""


def teacher_forced(base: Base, facts: Sequence[EncodedFact]) -> list[TokenRecall]:
    """Loss, top-1 hit and rival of every target token, from the model's own forward pass; in the facts' order."""
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    measured: dict[int, TokenRecall] = {}
    for batch in batches_by_length(facts, limit=max(1, LOGITS_BYTES // (4 * vocabulary))):
        time = max(len(facts[row].ids) for row in batch)
        # Right padding needs no mask: with causal attention, no token sees the ones after it.
        ids = torch.zeros(len(batch), time, dtype=torch.long)
        for place, row in enumerate(batch):
            ids[place, : len(facts[row].ids)] = torch.tensor(facts[row].ids)
        logits: Tensor = base.model(input_ids=ids.to(base.device), use_cache=False).logits
        for place, row in enumerate(batch):
            fact = facts[row]
            measured[row] = _scores(fact, logits[place, fact.prompt_length - 1 : len(fact.ids) - 1])
    return [measured[row] for row in range(len(facts))]


def _scores(fact: EncodedFact, logits: Tensor) -> TokenRecall:
    """From the logits [length, vocab] that predict the target."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.tensor(fact.target, device=logits.device)
    nll = F.cross_entropy(logits, target, reduction="none")
    check_numbers(fact.id, nll.tolist())
    others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
    return TokenRecall(
        nll=tuple(nll.tolist()),
        top1=tuple((logits.argmax(-1) == target).tolist()),
        rival=tuple((logits.logsumexp(-1) - others).tolist()),
    )


def check_numbers(name: str, losses: Iterable[float]) -> None:
    """Raise DataError for a loss that is NaN or infinite."""
    for position, nll in enumerate(losses):
        if not math.isfinite(nll):
            raise not_a_number(name, position, nll)


def batches_by_length(facts: Sequence[EncodedFact], *, limit: int) -> Iterator[list[int]]:
    """Rows in batches of similar length, with at most `limit` padded tokens (or one row)."""
    batch: list[int] = []
    for row in sorted(range(len(facts)), key=lambda row: len(facts[row].ids)):
        if batch and (len(batch) + 1) * len(facts[row].ids) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
