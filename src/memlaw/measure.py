"""Did it stick? Teacher-forced probabilities and free-running greedy decoding of a memory set, as the model stands.

Whatever is attached to the base is measured: nothing, a stack in training, or a PEFT adapter. The verdict itself is
`memlaw.diagnosis`, which needs no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlaw.diagnosis import diagnose
from memlaw.model import Base, frozen
from memlaw.records import EncodedFact, RecallReport, TokenRecall

LOGITS_BYTES = 256 * 2**20
"""Memory for the logits of one teacher-forced batch."""

DECODING_ROWS = 256
"""Facts decoded side by side."""

TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2.5e-2}
"""Margin in nats that a certificate needs, by precision: over ten times (float32), or just over (bfloat16), the largest
difference seen between teacher-forced and key-value-cached log-probabilities of the same token."""


def measure(base: Base, facts: Sequence[EncodedFact], *, decode: bool) -> RecallReport:
    """Per-token diagnosis of `facts` under the base and whatever is attached to it.

    Without `decode` nothing is said about verbatim recall: `acc_em`, `acc_token`, `exact` and `certified` are None.
    """
    with frozen(base.model), torch.no_grad():
        scores = _teacher_forced(base, facts)
        decoded = _greedy(base, facts) if decode else {}
    tokens = []
    for row, fact in enumerate(facts):
        nll, top1 = scores[row]
        hits = None
        if decode:
            hits = tuple(a == b for a, b in zip(decoded[row], fact.target, strict=True))
        tokens.append(TokenRecall(nll=nll, top1=top1, decoded=hits))
    return diagnose(facts, tokens, tolerance=TOLERANCE[base.dtype], dtype=base.dtype)


def _teacher_forced(base: Base, facts: Sequence[EncodedFact]) -> dict[int, tuple[tuple[float, ...], tuple[bool, ...]]]:
    """Row -> (nll, top-1 hit) of its target tokens, by the model's own forward and logits."""
    vocabulary = base.model.get_output_embeddings().weight.shape[0]
    scores: dict[int, tuple[tuple[float, ...], tuple[bool, ...]]] = {}
    for batch in _by_length(facts, limit=max(1, LOGITS_BYTES // (4 * vocabulary))):
        time = max(len(facts[row].ids) for row in batch)
        # Right padding needs no mask: under causal attention no token sees what follows it.
        ids = torch.zeros(len(batch), time, dtype=torch.long)
        for place, row in enumerate(batch):
            ids[place, : len(facts[row].ids)] = torch.tensor(facts[row].ids)
        logits: Tensor = base.model(input_ids=ids.to(base.device), use_cache=False).logits
        for place, row in enumerate(batch):
            fact = facts[row]
            predicting = logits[place, fact.prompt_length - 1 : len(fact.ids) - 1].float()
            target = torch.tensor(fact.target, device=predicting.device)
            nll = F.cross_entropy(predicting, target, reduction="none")
            scores[row] = (tuple(nll.tolist()), tuple((predicting.argmax(-1) == target).tolist()))
    return scores


def _by_length(facts: Sequence[EncodedFact], *, limit: int) -> Iterator[list[int]]:
    """Rows in batches of similar length, with at most `limit` padded tokens (or one row)."""
    batch: list[int] = []
    for row in sorted(range(len(facts)), key=lambda row: len(facts[row].ids)):
        if batch and (len(batch) + 1) * len(facts[row].ids) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _greedy(base: Base, facts: Sequence[EncodedFact]) -> dict[int, tuple[int, ...]]:
    """Row -> as many tokens as its target has, by free-running greedy decoding with a key-value cache.

    Only prompts of equal length share a batch, so that no row is padded. Tokens after the first end-of-sequence token
    do not exist for a user; they are -1 here, which is no token.
    """
    decoded: dict[int, tuple[int, ...]] = {}
    eos = base.tokenizer.eos_token_id
    with _plain_generation(base.model):
        for rows in _by_prompt_length(facts):
            wanted = max(facts[row].length for row in rows)
            prompts = torch.tensor([facts[row].prompt for row in rows], device=base.device)
            output = base.model.generate(
                input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=wanted, do_sample=False
            )
            for row, generated in zip(rows, output[:, prompts.shape[1] :].tolist(), strict=True):
                decoded[row] = _until_end(generated[: facts[row].length], eos)
    return decoded


def _by_prompt_length(facts: Sequence[EncodedFact]) -> Iterable[list[int]]:
    groups: dict[int, list[int]] = {}
    for row, fact in enumerate(facts):
        groups.setdefault(fact.prompt_length, []).append(row)
    for rows in groups.values():
        rows.sort(key=lambda row: facts[row].length)
        for start in range(0, len(rows), DECODING_ROWS):
            yield rows[start : start + DECODING_ROWS]


def _until_end(generated: list[int], eos: int | None) -> tuple[int, ...]:
    if eos not in generated:
        return tuple(generated)
    end = generated.index(eos) + 1
    return tuple(generated[:end] + [-1] * (len(generated) - end))


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Greedy decoding proper: a model's saved repetition penalty or forced tokens would not be its argmax."""
    from transformers import GenerationConfig

    saved = model.generation_config
    model.generation_config = GenerationConfig(pad_token_id=0)  # no end token: every row runs to its full length
    try:
        yield
    finally:
        model.generation_config = saved
