"""What the frozen base and an existing adapter allow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from memlaw.adapter.info import load_info, recorded_training
from memlaw.adapter.peft import attach
from memlaw.core.config import UNTIL_RECALLED
from memlaw.core.errors import ModelError
from memlaw.core.facts import EncodedFact, MemorySet
from memlaw.diagnosis.findings import Finding
from memlaw.model.base import Base
from memlaw.model.head import frozen_head
from memlaw.model.parts import frozen
from memlaw.model.reach import reach_bounds

BARELY = 0.5 * math.exp(UNTIL_RECALLED.margin)
"""What `memlaw train` asks of every token's probability: one half, with its margin (0.553)."""


def base_findings(base: Base) -> Iterator[Finding]:
    """What loading the base already warned of."""
    for warning in base.warnings:
        yield Finding("info", None, "base", warning, "Look for unreachable-token among these findings; else nothing.")


def reach_findings(base: Base, encoded: Sequence[EncodedFact]) -> Iterator[Finding]:
    """Targets with tokens that no adapter below the frozen head can bring to p > 1/2, or only just."""
    try:
        bounds = reach_of_tokens(base, sorted({token for fact in encoded for token in fact.target}))
    except ModelError as error:
        yield Finding(
            "info",
            None,
            "reach-unknown",
            f"Which tokens an adapter can bring to p > 1/2 was not found out: {error}",
            "Train, and see in `memlaw recall` whether the same tokens stay stubborn.",
        )
        return
    for fact in encoded:
        reach = [bounds[token] for token in fact.target]
        never = tuple(t for t, (_, upper) in enumerate(reach) if upper <= 0.5)
        barely = tuple(t for t, (lower, upper) in enumerate(reach) if lower <= BARELY and upper > 0.5)
        if never:
            yield Finding(
                "error",
                fact.id,
                "unreachable-token",
                f"No adapter below the frozen head can give {_tokens(never, fact)} p > 1/2: no rank, method or number "
                "of steps makes this target certain.",
                "Word the target otherwise, or train the head as well (PEFT: modules_to_save=['lm_head']).",
                never,
            )
        if barely:
            yield Finding(
                "warning",
                fact.id,
                "barely-reachable",
                f"The frozen head gives {_tokens(barely, fact)} hardly more than p = 1/2 at best: last to be recalled, "
                "and first to be lost.",
                "Word the target otherwise if they stay stubborn, or train the head as well.",
                barely,
            )


def _tokens(positions: Sequence[int], fact: EncodedFact) -> str:
    return f"{len(positions):,} of its {fact.length:,} target tokens (first at position {positions[0]})"


def reach_of_tokens(base: Base, tokens: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Token -> (a probability that is attained, a probability that none exceeds)."""
    with frozen(base.model):
        found = reach_bounds(frozen_head(base.model), tokens)
    return dict(zip(tokens, zip(found.lower.tolist(), found.upper.tolist(), strict=True), strict=True))


def adapter_findings(
    base: Base, memory_set: MemorySet, encoded: Sequence[EncodedFact], directory: Path
) -> Iterator[Finding]:
    """An adapter of another base, of other facts, or one that changes nothing. Raises AdapterError for no adapter."""
    info = load_info(directory)
    if info is not None and info.base_fingerprint != base.fingerprint:
        yield Finding(
            "error",
            None,
            "adapter-of-another-base",
            f"The adapter {directory} was trained on {info.base} (weights {info.base_fingerprint[:12]}), not on "
            f"{base.name} (weights {base.fingerprint[:12]}), where it would give other text without any error.",
            f"Use --model {info.base}, or train the adapter again.",
        )
        return
    if info is not None:
        for warning in recorded_training(info)[1]:
            yield Finding("info", None, "adapter-of-a-later-memlaw", warning, "Upgrade memlaw.")
    if info is not None and info.facts_fingerprint not in (None, memory_set.fingerprint):
        yield Finding(
            "info",
            None,
            "adapter-of-other-facts",
            f"The adapter {directory} was trained on other prompts or targets than these, or with another rule for the "
            "end of sequence.",
            "Ask with exactly the facts that were trained: same prompts, same template, same --eos.",
        )
    if encoded and _changes_nothing(base, min(encoded, key=lambda fact: len(fact.ids)), directory):
        yield Finding(
            "error",
            None,
            "adapter-is-zero",
            f"The adapter {directory} loads and changes no logit: its B is zero, as before training, or its weights "
            "have names that this model has not.",
            "Save the adapter after training, from the model that was trained, and check the names of its modules.",
        )


def _changes_nothing(base: Base, fact: EncodedFact, directory: Path) -> bool:
    bare = _logits(base, fact)
    with attach(base, directory):
        return torch.equal(_logits(base, fact), bare)


def _logits(base: Base, fact: EncodedFact) -> Tensor:
    with frozen(base.model), torch.no_grad():
        ids = torch.tensor([fact.ids[: base.context]], device=base.device)
        logits: Tensor = base.model(input_ids=ids, use_cache=False).logits
        return logits
